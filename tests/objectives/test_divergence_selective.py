"""Divergences on some tokens: which rows count, what they learn, and what the mean is over.

Run: python -m pytest tests/objectives/test_divergence_selective.py
"""

from functools import partial
from math import e, log

import pytest
import torch

from kd.objectives.divergence import forward_kl, reverse_kl
from kd.objectives.reduction import Counts, reduce
from kd.objectives.selective import entropy, hardest, selected, teacher_correctness
from kd.signals import ROW, domain, is_row_wise, requires
from tests.objectives.cases import draw, gradient, logits_of

SURE, HALF, FLAT = (1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), (0.25, 0.25, 0.25, 0.25)  # 0, log 2, log 4 nats
OTHER = (0.4, 0.3, 0.2, 0.1)
LABELS = torch.tensor([0, 0, 0])


def keep_some(student_logits, teacher_logits, labels):
    return torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=student_logits.dtype)


# ---- the wrapper ----


def test_rows_are_weighed_in_value_and_gradient():
    student, teacher = draw(4, 7), draw(4, 7, seed=1)
    loss = partial(selected, labels=torch.zeros(4, dtype=torch.int64), divergence=reverse_kl, rule=keep_some)
    weights = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(loss(student, teacher), weights * reverse_kl(student, teacher))
    expected = weights[:, None] * gradient(reverse_kl, student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), expected)


def test_the_rule_is_a_constant_to_the_gradient():
    # A smooth rule on the student's entropy moves with the student; were it learnt, the student could turn the loss
    # down by becoming sure.
    student, teacher = draw(4, 7), draw(4, 7, seed=1)
    labels = torch.zeros(4, dtype=torch.int64)
    rule = partial(entropy, threshold=1.0, width=0.5)
    loss = partial(selected, labels=labels, divergence=forward_kl, rule=rule)
    expected = rule(student, teacher, labels)[:, None] * gradient(forward_kl, student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), expected)


def test_the_mean_is_over_all_response_tokens():
    # Rows of 2 and 6 nats are kept out of four: 8 / 4, not 8 / 2.
    def divergence(student_logits, teacher_logits):
        return torch.tensor([2.0, 9.0, 6.0, 9.0])

    def rule(student_logits, teacher_logits, labels):
        return torch.tensor([1.0, 0.0, 1.0, 0.0])

    values = selected(draw(4, 3), draw(4, 3), LABELS.new_zeros(4), divergence=divergence, rule=rule)
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert reduce(values, mask, Counts(tokens=4.0, responses=1.0, groups=1.0), domain=ROW).item() == pytest.approx(2.0)


def test_rules_of_a_row_run_in_chunks_and_a_rank_does_not():
    assert is_row_wise(partial(selected, divergence=forward_kl, rule=keep_some))
    assert requires(selected) == {"student_logits", "teacher_logits", "labels"}
    ranked = partial(hardest, divergence=forward_kl)
    assert not is_row_wise(ranked)
    assert domain(ranked) == ROW


# ---- rules ----


@pytest.mark.parametrize(
    ("threshold", "above"), [(1e-6, [0, 1, 1]), (0.6, [0, 1, 1]), (0.7, [0, 0, 1]), (1.3, [0, 0, 1]), (1.4, [0, 0, 0])]
)
def test_entropy_by_hand(threshold, above):
    # log 2 = .693, log 4 = 1.386
    said, other = logits_of(SURE, HALF, FLAT), logits_of(OTHER, OTHER, OTHER)
    assert entropy(said, other, LABELS, of="student", threshold=threshold).tolist() == above
    assert entropy(other, said, LABELS, of="teacher", threshold=threshold).tolist() == above


def test_below_is_the_rest():
    said = logits_of(SURE, HALF, FLAT)
    assert entropy(said, said, LABELS, threshold=0.7, keep="below").tolist() == [1, 1, 0]


def test_a_smooth_threshold_by_hand():
    # H = log 4: sigmoid((log 4 - log 4) / w) = 1/2; a width above: sigmoid(1) = e/(1 + e); below: its complement
    said = logits_of(FLAT)
    at = partial(entropy, said, said, LABELS[:1])
    assert at(threshold=log(4), width=0.3).item() == pytest.approx(0.5)
    assert at(threshold=log(4) - 0.3, width=0.3).item() == pytest.approx(e / (1 + e))
    assert at(threshold=log(4) - 0.3, width=0.3, keep="below").item() == pytest.approx(1 / (1 + e))


def test_entropy_is_of_the_tempered_distribution():
    # p^(1/T) of (.8, .2) at T = 2 is (2, 1)/3
    said = logits_of((0.8, 0.2))
    tempered = -(2 / 3 * log(2 / 3) + 1 / 3 * log(1 / 3))
    at = partial(entropy, said, said, LABELS[:1], temperature=2.0)
    assert at(threshold=tempered - 1e-9).item() == 1
    assert at(threshold=tempered + 1e-9).item() == 0


def test_teacher_correctness_by_hand():
    # argmax 0 and right; argmax 2 and wrong; two most probable ids, of which the label is one
    teacher = torch.tensor([[3.0, 1.0, 2.0], [1.0, 0.0, 2.0], [0.0, 4.0, 4.0]])
    labels = torch.tensor([0, 0, 2])
    student = torch.zeros(3, 3)
    assert teacher_correctness(student, teacher, labels).tolist() == [1, 0, 1]
    assert teacher_correctness(student, teacher, labels, keep="wrong").tolist() == [0, 1, 0]
    assert teacher_correctness(student, teacher.bfloat16(), labels).dtype == torch.float32


# ---- rank ----


def of_rows(*values: float):
    """A divergence that is known."""

    def divergence(student_logits, teacher_logits):
        return student_logits[:, 0] * 0 + torch.tensor(values, dtype=student_logits.dtype)

    return divergence


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, [0, 0, 5, 0, 0]),
        (0.4, [0, 0, 5, 4, 0]),
        (0.41, [3, 0, 5, 4, 3]),  # 2.05 rows are 3, and the fourth is as large as the third
        (0.6, [3, 0, 5, 4, 3]),
        (1.0, [3, 1, 5, 4, 3]),
    ],
)
def test_the_hardest_by_hand(share, expected):
    loss = partial(hardest, divergence=of_rows(3, 1, 5, 4, 3), share=share)
    assert loss(draw(5, 3), draw(5, 3)).tolist() == expected


def test_a_share_is_no_row_more_than_it_states():
    """0.07 x 100 is 7.000000000000001 in floating point."""
    loss = partial(hardest, divergence=of_rows(*range(1, 101)), share=0.07)
    assert int((loss(draw(100, 3), draw(100, 3)) > 0).sum()) == 7


def test_only_the_hardest_learn():
    student, teacher = draw(6, 7), draw(6, 7, seed=1)
    kept = forward_kl(student, teacher).argsort(descending=True)[:3]
    expected = torch.zeros(6, 7, dtype=torch.float64)
    expected[kept] = gradient(forward_kl, student, teacher)[kept]
    found = gradient(partial(hardest, divergence=forward_kl, share=0.5), student, teacher)
    torch.testing.assert_close(found, expected)


def test_no_rows_have_no_hardest():
    assert hardest(draw(0, 7), draw(0, 7), divergence=forward_kl).shape == (0,)
