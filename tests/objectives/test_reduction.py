"""The only place that averages, on a ragged mask and by hand.

Run: python -m pytest tests/objectives/test_reduction.py
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kd.objectives.reduction import Counts, count, reduce, row_weights
from kd.signals import PAIR, POSITION, RESPONSE, ROW
from kd.types import Batch, Sequences

NAN = float("nan")
# Two prompts of two responses each: 3, 1, 0 and 2 response tokens.
MASK = torch.tensor(
    [
        [True, True, True, False],
        [False, True, False, False],
        [False, False, False, False],
        [False, False, True, True],
    ]
)
VALUES = torch.tensor(
    [
        [1.0, 2.0, 6.0, NAN],
        [NAN, 5.0, NAN, NAN],
        [NAN, NAN, NAN, NAN],
        [NAN, NAN, 8.0, 10.0],
    ]
)
COUNTS = Counts(tokens=6.0, responses=3.0, groups=2.0)
BY_HAND = {
    "token": (1 + 2 + 6 + 5 + 8 + 10) / 6,
    "sequence": ((1 + 2 + 6) / 3 + 5 / 1 + (8 + 10) / 2) / 3,
    "sum": 1 + 2 + 6 + 5 + 8 + 10,
}
each_reduction = pytest.mark.parametrize("reduction", BY_HAND)


def batch(mask: torch.Tensor, group_size: int = 1) -> Batch:
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    sequences = Sequences(tokens, tokens, mask, lengths=torch.full((len(mask),), mask.shape[1]))
    return Batch(sequences, sequences, group_size=group_size)


def counts_of(*batches: Batch) -> Counts:
    return Counts(*count(batches).tolist())


def test_counts_by_hand():
    assert counts_of(batch(MASK, group_size=2)) == COUNTS
    assert counts_of(batch(MASK)) == replace(COUNTS, groups=3.0)  # a response each, one of them without a token


def test_counts_add_up_over_micro_batches():
    assert counts_of(batch(MASK[:2, :3], 2), batch(MASK[2:], 2)) == COUNTS  # micro-batches of different widths
    assert counts_of() == Counts(0.0, 0.0, 0.0)


def test_what_the_student_wrote_is_counted_apart():
    """Its are the first and the fourth of four responses: 3 + 2 of 6 tokens, 2 of 3 responses."""
    written = replace(batch(MASK, group_size=2), written_by=torch.tensor([2, 1, 2, 2]))
    counts = counts_of(written)
    assert counts == replace(COUNTS, own_tokens=5.0, own_responses=2.0)
    assert counts.among("all") is counts
    assert counts.among("student") == Counts(5.0, 2.0, 0.0)
    assert counts.among("other") == Counts(1.0, 1.0, 0.0)


def test_rows_that_are_not_chosen_weigh_nothing():
    chosen = MASK & torch.tensor([True, False, True, True])[:, None]
    counts = Counts(5.0, 2.0, 0.0)
    assert row_weights(MASK, counts, "token", chosen=chosen).tolist() == pytest.approx([0.2, 0.2, 0.2, 0, 0.2, 0.2])
    by_response = row_weights(MASK, counts, "sequence", chosen=chosen)  # a half each, of 3 and 2 tokens
    assert by_response.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 0, 1 / 4, 1 / 4])
    assert row_weights(MASK, counts, "sum", chosen=chosen).tolist() == [1, 1, 1, 0, 1, 1]


def test_a_response_weighs_as_its_chosen_tokens():
    """Of three tokens two are chosen, a half each; of two the first."""
    chosen = torch.zeros_like(MASK)
    chosen[0, 1:3] = chosen[3, 2] = True
    counts = Counts(tokens=3.0, responses=2.0, groups=2.0)
    assert row_weights(MASK, counts, "sequence", chosen=chosen).tolist() == pytest.approx([0, 0.25, 0.25, 0, 0.5, 0])
    assert row_weights(MASK, counts, "token", chosen=chosen).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3, 0])


@each_reduction
@pytest.mark.parametrize("domain", [ROW, POSITION])
def test_positions_by_hand(domain, reduction):
    values = VALUES[MASK] if domain == ROW else VALUES
    result = reduce(values, MASK, COUNTS, domain=domain, reduction=reduction)
    assert result.item() == pytest.approx(BY_HAND[reduction], rel=1e-6)


@each_reduction
def test_row_weights_are_what_reduce_multiplies_by(reduction):
    weights = row_weights(MASK, COUNTS, reduction)
    assert (weights * VALUES[MASK]).sum().item() == pytest.approx(BY_HAND[reduction], rel=1e-6)


def test_row_weights_by_hand():
    assert row_weights(MASK, COUNTS, "token").tolist() == pytest.approx([1 / 6] * 6)
    # 1/3 of the step for each response with tokens, shared by its 3, 1 and 2 tokens
    assert row_weights(MASK, COUNTS, "sequence").tolist() == pytest.approx([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 6, 1 / 6])
    assert row_weights(MASK, COUNTS, "sum").tolist() == [1.0] * 6


@pytest.mark.parametrize(("reduction", "expected"), [("token", 13 / 3), ("sequence", 13 / 3), ("sum", 13.0)])
def test_responses_by_hand(reduction, expected):
    per_response = torch.tensor([1.0, 4.0, NAN, 8.0])  # the third has no token, so no mean to speak of
    result = reduce(per_response, MASK, COUNTS, domain=RESPONSE, reduction=reduction)
    assert result.item() == pytest.approx(expected)


@pytest.mark.parametrize(("reduction", "expected"), [("token", 2.5), ("sequence", 2.5), ("sum", 5.0)])
def test_pairs_by_hand(reduction, expected):
    result = reduce(torch.tensor([1.0, 4.0]), MASK, COUNTS, domain=PAIR, reduction=reduction)
    assert result.item() == pytest.approx(expected)


@pytest.mark.parametrize(("reduction", "expected"), [("token", 4.0), ("sequence", 4.0), ("sum", 4.0)])
def test_groups_without_a_loss_token_are_dropped(reduction, expected):
    mask = MASK.clone()
    mask[:2] = False
    counts = counts_of(batch(mask, group_size=2))
    assert counts == Counts(tokens=2.0, responses=1.0, groups=1.0)
    values = torch.tensor([NAN, 4.0], requires_grad=True)
    result = reduce(values, mask, counts, domain=PAIR, reduction=reduction)
    assert result.item() == pytest.approx(expected)
    result.backward()
    assert values.grad.tolist() == [0.0, 1.0]


@each_reduction
@pytest.mark.parametrize("cuts", [(2,), (1, 3), (1, 2, 3)])
def test_splitting_the_window_changes_nothing(cuts, reduction):
    edges = [0, *cuts, len(MASK)]
    pieces = [slice(start, stop) for start, stop in pairwise(edges)]
    counts = counts_of(*(batch(MASK[rows]) for rows in pieces))
    shares = [reduce(VALUES[rows], MASK[rows], counts, domain=POSITION, reduction=reduction) for rows in pieces]
    assert sum(shares).item() == pytest.approx(BY_HAND[reduction], rel=1e-6)


@each_reduction
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, reduction):
    width = (3, 0) if side == "left" else (0, 3)
    mask = torch.nn.functional.pad(MASK, width, value=False)
    values = torch.nn.functional.pad(VALUES, width, value=NAN)
    result = reduce(values, mask, counts_of(batch(mask)), domain=POSITION, reduction=reduction)
    assert result.item() == pytest.approx(BY_HAND[reduction], rel=1e-6)


@each_reduction
def test_positions_without_loss_get_no_gradient(reduction):
    values = VALUES.clone().requires_grad_()
    reduce(values, MASK, COUNTS, domain=POSITION, reduction=reduction).backward()
    expected = torch.zeros_like(VALUES).masked_scatter(MASK, row_weights(MASK, COUNTS, reduction))
    torch.testing.assert_close(values.grad, expected)


@pytest.mark.parametrize("domain", [ROW, POSITION, RESPONSE, PAIR])
def test_a_micro_batch_without_a_loss_token_is_zero_and_keeps_its_graph(domain):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    shape = {ROW: (0,), POSITION: (2, 3), RESPONSE: (2,), PAIR: (1,)}[domain]
    values = torch.zeros(shape, requires_grad=True)
    result = reduce(values, mask, Counts(0.0, 0.0, 0.0), domain=domain)
    assert result.item() == 0
    result.backward()
    assert values.grad is not None


def test_half_precision_values_are_summed_in_float32():
    # 1/3000 and a sum of 3000 addends are not bf16 numbers; their mean is 1.
    mask = torch.ones(3, 1000, dtype=torch.bool)
    values = torch.ones(3000, dtype=torch.bfloat16)
    assert reduce(values, mask, counts_of(batch(mask)), domain=ROW).item() == pytest.approx(1, rel=1e-6)
    scores = torch.tensor([1.0, 1.0, 1.0078125], dtype=torch.bfloat16)
    mean = reduce(scores, mask, counts_of(batch(mask)), domain=RESPONSE)
    assert mean.item() == pytest.approx((2 + 1.0078125) / 3, rel=1e-6)


def test_double_precision_stays_double():
    assert reduce(VALUES.double(), MASK, COUNTS, domain=POSITION).dtype == torch.float64
