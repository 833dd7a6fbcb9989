"""The client against vLLM itself, on a CPU: `make vllm` installs it in an environment of its own and runs this.

Weights of a tied and of an untied student arrive, step after step; those that a checkpoint calls tied do not, which is
why none does. What was measured is printed.
"""

import copy
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch

from kd.data.sequences import Encoder
from kd.generators.external_engine import EXACTNESS, probe
from kd.generators.generation import read_again
from kd.generators.rescoring import read_responses
from kd.generators.sampling import Sampled
from kd.generators.vllm_server import Server
from kd.generators.weights import worker
from kd.models.language_model import LanguageModel
from kd.rollouts.on_policy import Asynchronous
from kd.types import Batch, Models, Progress
from tests.generators.test_vllm_server import asked, moved
from tests.tiny import records, tiny

HOME = os.environ.get("KD_VLLM", "")
PATIENCE = 500.0  # seconds for a server to start
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
STEPS = 4

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2000),
    pytest.mark.skipif(not HOME, reason="needs an environment with vLLM; make vllm"),
]


def student(tied: bool) -> LanguageModel:
    """Heads of 32, for attention on a CPU has no 8 or 16."""
    return tiny(dtype="float32", tie_word_embeddings=tied, **SHAPE)


@contextmanager
def vllm(folder: Path, log: Path, extended: bool = False) -> Iterator[str]:
    """The address of a server that was started from the checkpoint in `folder`, with our extension of its workers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": f"{HOME}/lib/libiomp5.so",
    }
    words = f"serve {folder} --host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-num-seqs 16"
    words += " --logprobs-mode processed_logprobs --generation-config vllm"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings
    if extended:
        environment["PYTHONPATH"] = str(Path(worker.__file__).parent)
        words += " --worker-extension-cls shared_weights.SharedWeights"
    with log.open("w") as output:
        started = subprocess.Popen([f"{HOME}/bin/vllm", *words.split()], env=environment, stdout=output, stderr=output)
    try:
        _wait(started, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait(60)


def _wait(started: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if started.poll() is not None:
            break
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    raise AssertionError(f"vLLM did not start: {log.read_text()[-3000:]}")


def furthest(generator: Server, model: LanguageModel) -> float:
    """Of the tokens of the fixed prompt, the largest distance of the two sides' log-probabilities, in nats."""
    ids = probe(model)
    [own] = read_responses(model, [(ids[:1], ids[1:])], Sampled(1.0), batch_size=1)
    return (torch.tensor(generator.score(ids)) - own.own).abs().max().item()


def test_weights_of_tied_and_untied_students_arrive(tmp_path):
    """One server for both: a tied student's checkpoint has a head of its own, so it looks like an untied one's."""
    students = {"tied": student(True), "untied": student(False)}
    folder = tmp_path / "weights"
    Server(url="http://unused", weights=str(folder)).save(students["tied"])
    with vllm(folder, tmp_path / "log.txt") as url:
        for name, model in students.items():
            generator = Server(url=url, weights=str(folder))
            for step in range(STEPS):
                asked(generator, model, sampled=Sampled(1.0), samples=2, version=step)
                distance, tokens = generator.take_report()["sampler_mismatch"]
                apart = furthest(generator, model)
                print(f"{name}: step {step}: mean {distance / tokens:.6f}, furthest token {apart:.6f} nats")
                assert apart < 0.001
                moved(model, seed=step)


def test_weights_arrive_through_memory(tmp_path):
    """Into one server, by turns with the folder, of a student of 44 million parameters."""
    folder = tmp_path / "weights"
    shape = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    students = {
        name: tiny(dtype="float32", tie_word_embeddings=tied, **shape, **heads)
        for name, tied in {"tied": True, "untied": False}.items()
    }
    Server(url="http://unused", weights=str(folder)).save(students["tied"])
    ram = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with vllm(folder, tmp_path / "log.txt", extended=True) as url:
            for name, model in students.items():
                ways = {
                    "memory": Server(url=url, weights=str(folder), transfer="memory"),
                    "folder": Server(url=url, weights=str(folder)),
                    "folder in /dev/shm": Server(url=url, weights=str(ram)),
                }
                for step, (way, generator) in itertools.product(range(STEPS), ways.items()):
                    moved(model, seed=step, size=0.01)
                    started = time.perf_counter()
                    generator._bring(model, version=step)
                    seconds = time.perf_counter() - started
                    apart = furthest(generator, model)
                    print(f"{name}: {way}: step {step}: {seconds:.2f} s, furthest token {apart:.6f} nats")
                    assert apart < 0.01
                ways["memory"].memory.close()
    finally:
        shutil.rmtree(ram)


def test_a_server_without_the_extension(tmp_path):
    model, folder = student(False), tmp_path / "weights"
    Server(url="http://unused", weights=str(folder)).save(model)
    with vllm(folder, tmp_path / "log.txt") as url:
        generator = Server(url=url, weights=str(folder), transfer="memory", retries=1)
        with pytest.raises(ValueError, match=r"start the server with PYTHONPATH=") as caught:
            asked(generator, model)
        print(f"without the extension: {caught.value}")
        generator.memory.close()
        asked(Server(url=url, weights=str(folder)), model)  # it goes on


@pytest.mark.parametrize("other", [{"intermediate_size": 48}, {"num_hidden_layers": 4}])
def test_a_server_with_a_model_of_other_shapes(tmp_path, other):
    folder, strange = tmp_path / "weights", tiny(dtype="float32", tie_word_embeddings=False, **{**SHAPE, **other})
    Server(url="http://unused", weights=str(folder)).save(student(False))
    with vllm(folder, tmp_path / "log.txt", extended=True) as url:
        generator = Server(url=url, weights=str(tmp_path / "other"), transfer="memory", retries=1)
        try:
            with pytest.raises(ValueError, match=r"takes other tensors .*; start it again") as caught:
                asked(generator, strange)
        finally:
            generator.memory.close()
        print(f"other shapes: {caught.value}")


def test_a_checkpoint_that_ties_its_head_leaves_it_behind(tmp_path, monkeypatch):
    """The reason for heads of their own; where vLLM has mended it, this fails, and `save_untied` may go."""
    monkeypatch.setattr(
        "kd.generators.external_engine.save_untied", lambda network, folder: network.save_pretrained(folder)
    )
    model, folder = student(True), tmp_path / "weights"
    generator = Server(url="http://unused", weights=str(folder))
    generator.save(model)
    with vllm(folder, tmp_path / "log.txt") as url:
        generator = Server(url=url, weights=str(folder))
        asked(generator, model)
        moved(model)
        with pytest.raises(ValueError, match="so not all of them have arrived") as caught:
            asked(generator, model, version=1)
        print(f"tied in the checkpoint: {caught.value}")
    assert "Failed to load weights" in (tmp_path / "log.txt").read_text()


def test_responses_are_generated_while_the_student_learns(tmp_path):
    """With weights of the step before: a server's log-probabilities are those of the student as it was then. Steps of
    two seconds, in which this process does nothing, with and without the overlap."""
    given, student_now, folder = records(24), student(False), tmp_path / "weights"
    encoder = Encoder(student_now.tokenizer, None, max_length=400, max_tokens=4000)
    Server(url="http://unused", weights=str(folder)).save(student_now)
    settings = {"samples": 4, "max_new_tokens": 200}
    with vllm(folder, tmp_path / "log.txt") as url:
        seconds, waits = {}, {}
        for staleness in (0, 1):
            rollout = Asynchronous(staleness=staleness, generator=Server(url=url, weights=str(folder)), **settings)
            versions, started = [copy.deepcopy(student_now)], time.perf_counter()
            for step in range(STEPS):
                rollout.foresee([encoder.batches(given[4 * later :][:4]) for later in (step + 1,) if later < STEPS])
                batches = rollout(
                    encoder.batches(given[4 * step :][:4]), Models(student_now), Progress(step, STEPS), encoder
                )
                apart = max(furthest_of(versions[max(step - staleness, 0)], batch) for batch in batches)
                print(f"staleness {staleness}: step {step}: furthest token {apart:.6f} nats")
                assert apart < EXACTNESS[torch.float32]
                if step and staleness:
                    assert max(furthest_of(student_now, batch) for batch in batches) > 0.1
                moved(student_now, seed=step)
                versions.append(copy.deepcopy(student_now))
                time.sleep(2.0)
            seconds[staleness] = time.perf_counter() - started
            waits[staleness] = rollout.take_report()["generation_wait"]
    print(f"seconds of {STEPS} steps without and with overlap: {seconds}; seconds waited: {waits[1]}")
    assert seconds[1] < seconds[0]


def furthest_of(model: LanguageModel, batch: Batch) -> float:
    """The largest distance of a model's log-probabilities to those that a batch was drawn with, in nats."""
    own = read_again(model, batch.student)
    return (own - batch.behaviour_logprobs)[batch.student.mask].abs().max().item()
