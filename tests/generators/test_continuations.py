"""The log-probabilities of continuations: by hand from the network's own logits, each prompt read once.

Run: python -m pytest tests/generators/test_continuations.py
"""

import pytest
import torch

from kd.generators.continuations import branch_logprobs, continuation_logprobs
from kd.models.language_model import LanguageModel
from tests.tiny import tiny

SHAPES = ((9, (1, 4, 2)), (30, (3,)), (1, (1, 1)), (12, (6, 20, 1, 2)), (13, (2, 5)))  # prompts, and continuations


def drawn(lengths) -> list[list[int]]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 256, (length,), generator=draw).tolist() for length in lengths]


PROMPTS = drawn([length for length, _ in SHAPES])
CONTINUATIONS = [drawn(lengths) for _, lengths in SHAPES]


def by_hand(model: LanguageModel) -> list[list[float]]:
    def one(prompt: list[int], ids: list[int]) -> float:
        with torch.no_grad():
            logits = model.network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1, : model.vocabulary]
        return logits.double().log_softmax(-1)[torch.arange(len(ids)), ids].sum().item()

    return [[one(p, ids) for ids in several] for p, several in zip(PROMPTS, CONTINUATIONS, strict=True)]


def gap(found: list[list[float]], right: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(found, right, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("max_tokens", [1, 60, 1000])
@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "gpt2"])
def test_branches_of_a_prompt_are_read_as_each_sequence_alone(family, max_tokens):
    model = tiny(family=family)
    assert model.packs
    done: list[int] = []
    found = branch_logprobs(model, PROMPTS, CONTINUATIONS, max_tokens=max_tokens, progress=done.append)
    assert gap(found, by_hand(model)) < 1e-5
    assert sum(done) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_token_by_token_they_are_the_same(batch_size):
    model = tiny()
    found = continuation_logprobs(model, PROMPTS, CONTINUATIONS, batch_size=batch_size)
    assert gap(found, by_hand(model)) < 1e-5


def test_in_float32_they_are_the_same_within_rounding():
    model = tiny(dtype="float32")
    assert gap(branch_logprobs(model, PROMPTS, CONTINUATIONS, max_tokens=100), by_hand(model)) < 1e-4


def test_each_prompt_is_read_once_and_no_last_token_at_all():
    model, read = tiny(), list[int]()
    model.network.get_input_embeddings().register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    assert model.packs
    read.clear()
    branch_logprobs(model, PROMPTS, CONTINUATIONS, max_tokens=60)
    assert sum(read) == sum(n + sum(lengths) - len(lengths) for n, lengths in SHAPES)
