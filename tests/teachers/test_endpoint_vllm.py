"""A teacher behind vLLM itself, on a CPU (`make vllm`): its self-test, and targets of texts that it reads as ids.

The log-probabilities of the server and those of the model in this process are the same numbers.
"""

from pathlib import Path

import pytest
import torch

from kd.data.sequences import Encoder
from kd.generators.settings import Decoding
from kd.generators.vllm_server import Server
from kd.teachers.endpoint.client import Connection
from kd.teachers.endpoint.teacher import Endpoint
from kd.teachers.listed import Listed
from kd.teachers.targets import TopK
from kd.teachers.truncated import Approximated
from kd.teachers.white_box import WhiteBox
from tests.generators.test_vllm_itself import HOME, student, vllm
from tests.tiny import records

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2000),
    pytest.mark.skipif(not HOME, reason="needs an environment with vLLM; make vllm"),
]


def test_the_server_passes_its_test_and_its_targets_are_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    model, folder, given = student(False), tmp_path / "weights", records(3)
    Server(url="http://unused", weights=str(folder)).save(model)
    encoder = Encoder(model.tokenizer, None, max_length=256, max_tokens=4096)
    with vllm(folder, tmp_path / "log.txt") as url:
        offers = ["text", "logprobs", "top_logprobs", "prompt_logprobs"]
        settings = {"served_model": str(folder), "offers": offers, "tokenizer": "bytes", "top": 5}
        teacher = Endpoint(url=f"{url}/v1", connection=Connection(timeout=300), **settings)
        [answers] = teacher.respond(given[:1], decoding=Decoding(4, temperature=0.0), engine=None)
        assert len(answers.texts) == 1
        listed, whole = Listed(teacher, TopK(k=5)), Approximated(WhiteBox(model), TopK(k=5))
        for batch in encoder.batches(given):
            ours, theirs = (one.output(batch, frozenset({"logits"})).logits for one in (listed, whole))
            distance = (ours.logprobs - theirs.logprobs).abs().max().item()
            print(f"prompt_logprobs: {ours.n} tokens, the furthest of 5 log-probabilities {distance:.6f} nats apart")
            assert distance < 0.001
            torch.testing.assert_close(ours.tail, theirs.tail.float(), rtol=1e-2, atol=1e-3)
