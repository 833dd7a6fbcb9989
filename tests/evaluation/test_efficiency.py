"""The cost of running a model, counted by hand for a Llama of 2 layers."""

import pytest

from kd.evaluation.efficiency import PROMPTS, efficiency
from kd.models.networks import pretrained
from tests.experiment.test_export import adapted
from tests.tiny import records, tiny


def test_the_cost_of_a_small_llama() -> None:
    """Width 32, feed-forward 64, 4 heads of 8 of which 2 for keys and values, a head of its own."""
    model = tiny()
    vocabulary = model.vocabulary
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    found = efficiency(model, records(PROMPTS))
    assert found.parameters == 2 * vocabulary * 32 + 2 * (block + 2 * 32) + 32
    assert found.weights_bytes == 8 * found.parameters
    assert found.cache_bytes_per_token == 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, width, bytes
    attention = 2 * 2 * 4 * (8 + 8) // 2
    assert found.flops_per_token == 2 * (2 * (block + 2 * 32) + 32) + 2 * vocabulary * 32 + attention
    assert found.tokens_per_second is not None
    assert found.tokens_per_second > 0
    assert 0 < found.generated_tokens <= PROMPTS * 32


def test_adapters_cost_nothing_once_they_are_folded_in(tmp_path) -> None:
    student = adapted(tmp_path / "base")
    plain = pretrained(source=f"local:{tmp_path / 'base'}", dtype="float64")
    ours, theirs = efficiency(student, []), efficiency(plain, [])
    assert (ours.parameters, ours.flops_per_token) == (theirs.parameters, theirs.flops_per_token)
    assert ours.tokens_per_second is None


@pytest.mark.parametrize(("family", "bytes_per_token"), [("gpt2", 2 * 2 * 32 * 8), ("gemma2", 2 * 2 * 2 * 8 * 8)])
def test_the_cache_of_other_families(family: str, bytes_per_token: int) -> None:
    assert efficiency(tiny(family=family), []).cache_bytes_per_token == bytes_per_token
