"""Spans: products of probabilities by hand, equality, limits.

Run: python -m pytest tests/objectives/test_spans.py
"""

import math
from functools import partial

import pytest
import torch

from kd.objectives.divergence import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from kd.objectives.spans import approximate_likelihood, debiased_likelihood, merged_spans
from kd.objectives.transport import universal_logit
from kd.types import Boundaries, Pairs, Spans
from tests.objectives.cases import draw, logits_of


def spans(*ranges: tuple[int, int, int, int]) -> Spans:
    columns = torch.tensor(ranges, dtype=torch.long).view(-1, 4).unbind(1)
    return Spans(*columns, torch.zeros(len(ranges), dtype=torch.long))


SINGLE = spans(*((i, i + 1, i, i + 1) for i in range(4)))
HERE = torch.arange(4)


# ---- gold: merged spans ---------------------------------------------------------------------------------------------


def test_a_merged_span_by_hand():
    """The student writes "ab" in one token (id 0), the teacher as a (0) and b (1): its p~ = p(.) * p(b | a).

    Ids: student (ab, x), teacher (a, b, x'); x stands for x'.
    p = (.5, .2, .3), p(b | a) = .4, so p~ = (.2, .08, .12); q = (.7, .3).
    Matched x: p~ .12, q~ .3. Unmatched: teacher .2 .08 against student .7.
    """
    student, teacher = logits_of((0.7, 0.3)), logits_of((0.5, 0.2, 0.3), (0.1, 0.4, 0.5))
    given = (student, teacher, torch.tensor([0]), torch.tensor([0, 1]), spans((0, 1, 0, 2)), torch.tensor([-1, -1, 1]))
    m = 0.5 * (0.12 + 0.3)
    matched = 0.5 * 0.12 * math.log(0.12 / m) + 0.5 * 0.3 * math.log(0.3 / m)
    unmatched = abs(0.2 - 0.7) + 0.08
    assert merged_spans(*given, unmatched_weight=0.0).item() == pytest.approx(matched)
    assert merged_spans(*given, matched_weight=0.0).item() == pytest.approx(unmatched)
    assert merged_spans(*given, matched_weight=2.0, unmatched_weight=3.0).item() == pytest.approx(
        2 * matched + 3 * unmatched
    )


def test_the_probability_of_a_span_is_the_product_of_its_tokens():
    """p~ at the written first token is the span's likelihood: with the ids that stand for it, both sides meet there."""
    student, teacher = draw(3, 5), draw(2, 5, seed=1)
    labels, theirs = torch.tensor([1, 2, 4]), torch.tensor([3, 0])
    q = student.log_softmax(-1).gather(1, labels[:, None]).sum().exp()
    p = teacher.log_softmax(-1).gather(1, theirs[:, None]).sum().exp()
    # only the two first tokens are matched; everything else is weighed with 0
    ids = torch.full((5,), -1).index_fill(0, torch.tensor([3]), 1)
    value = merged_spans(student, teacher, labels, theirs, spans((0, 3, 0, 2)), ids, beta=0.3, unmatched_weight=0.0)
    m = 0.3 * p + 0.7 * q
    torch.testing.assert_close(value[0], 0.3 * p * (p / m).log() + 0.7 * q * (q / m).log())
    assert value[1:].tolist() == [0, 0]


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_one_tokenizer_is_jsd(beta):
    student, teacher, labels = draw(4, 7), draw(4, 7, seed=1), torch.tensor([0, 3, 6, 2])
    value = merged_spans(student, teacher, labels, labels, SINGLE, torch.arange(7), beta=beta)
    torch.testing.assert_close(value, generalized_jsd(student, teacher, beta=beta))


def test_nothing_in_common_is_universal_logit_distillation():
    student, teacher, labels = draw(4, 7), draw(4, 9, seed=1), torch.tensor([0, 3, 6, 2])
    value = merged_spans(student, teacher, labels, labels, SINGLE, torch.full((9,), -1))
    torch.testing.assert_close(value, universal_logit(student, teacher, Pairs(HERE, HERE, HERE)))


def test_measures_of_different_mass_are_never_closer_than_nothing():
    for seed in range(5):
        student, teacher = draw(4, 7, seed=seed), draw(5, 7, seed=seed + 10)
        labels, theirs = torch.tensor([0, 3, 6, 2]), torch.tensor([0, 1, 2, 3, 4])
        ranges = spans((0, 1, 0, 2), (1, 3, 2, 3), (3, 4, 3, 5))
        values = merged_spans(student, teacher, labels, theirs, ranges, torch.arange(7))
        assert (values >= 0).all()
        assert values[2] == 0


def test_weights_by_the_share_of_ids_that_match():
    """One of the teacher's three ids has a counterpart: a third and two thirds; of each alone, too."""
    student, teacher = logits_of((0.7, 0.3)), logits_of((0.5, 0.2, 0.3), (0.1, 0.4, 0.5))
    given = (student, teacher, torch.tensor([0]), torch.tensor([0, 1]), spans((0, 1, 0, 2)), torch.tensor([-1, -1, 1]))
    parts = [merged_spans(*given, matched_weight=1 - w, unmatched_weight=w) for w in (0.0, 1.0)]
    shares = merged_spans(*given, matched_weight=None, unmatched_weight=None)
    torch.testing.assert_close(shares, parts[0] / 3 + 2 * parts[1] / 3)
    torch.testing.assert_close(merged_spans(*given, unmatched_weight=None), parts[0] + 2 * parts[1] / 3)
    torch.testing.assert_close(merged_spans(*given, matched_weight=None), parts[0] / 3 + parts[1])


def test_gold_learns_through_the_later_tokens_too():
    student, teacher = draw(2, 5).requires_grad_(), draw(1, 5, seed=1)
    args = (teacher, torch.tensor([1, 2]), torch.tensor([1]), spans((0, 2, 0, 1)), torch.arange(5))
    merged_spans(student, *args).sum().backward()
    assert (student.grad.abs().sum(1) > 0).all()
    assert torch.autograd.gradcheck(lambda z: merged_spans(z, *args), student)


# ---- alm ------------------------------------------------------------------------------------------------------------


def test_equal_likelihoods_are_zero_however_many_tokens():
    student, teacher = torch.tensor([-1.0, -2.0, -0.5]).requires_grad_(), torch.tensor([-3.0, -0.1, -0.2, -0.2])
    values = approximate_likelihood(student, teacher, spans((0, 2, 0, 1), (2, 3, 1, 4)))
    torch.testing.assert_close(values, torch.zeros(3), atol=1e-12, rtol=0)
    values.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(3), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (forward_kl, lambda p, q: p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))),
        (reverse_kl, lambda p, q: q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))),
        (total_variation, lambda p, q: abs(p - q)),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0])
def test_two_classes_by_hand(divergence, value, temperature):
    student, teacher = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-0.7]).double()
    p, q = math.exp(-0.7 / temperature), math.exp(-3.0 / temperature)
    made = approximate_likelihood(student, teacher, spans((0, 2, 0, 1)), divergence=divergence, temperature=temperature)
    assert made.tolist() == [pytest.approx(value(p, q), rel=1e-6), 0.0]


def test_a_certain_or_impossible_span_is_finite():
    student = torch.tensor([0.0, -500.0, -1e-12]).requires_grad_()
    teacher = torch.tensor([-500.0, 0.0, 0.0])
    for divergence in (forward_kl, reverse_kl, partial(generalized_jsd, beta=0.5)):
        for temperature in (1.0, 100.0):
            ranges = spans((0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3))
            values = approximate_likelihood(student, teacher, ranges, divergence=divergence, temperature=temperature)
            assert values.isfinite().all()
            assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_a_span_pulls_all_its_tokens_alike():
    student = torch.tensor([-1.0, -2.0, -3.0]).requires_grad_()
    approximate_likelihood(student, torch.tensor([-0.5, -0.5]), spans((0, 3, 0, 2)), temperature=10.0).sum().backward()
    assert student.grad[0] == student.grad[1] == student.grad[2] < 0  # more likely


# ---- alm with its correction -----------------------------------------------------------------------------------------

WORDS = Boundaries(torch.tensor([False, False, True]), torch.tensor([False, True, True, False]))
FIRST, SECOND = (0, 2, 0, 1), (2, 3, 1, 2)  # two of the student's tokens beside one, then one beside one


def of_two_spans(*ranges, sequence=(0, 0), **settings):
    """Students (a, b, then c), the teacher (ab, then c); ids c and its like begin with a space.

    q(ab) = .5 * .6, stops with .2; q(c) = .2. p(ab) = .7, stops with .1 + .3 = .4; p(c) = .3.
    """
    student = logits_of((0.5, 0.3, 0.2), (0.3, 0.6, 0.1), (0.1, 0.7, 0.2))
    teacher = logits_of((0.7, 0.1, 0.1, 0.1), (0.5, 0.1, 0.3, 0.1))
    given = spans(*(ranges or (FIRST, SECOND)))._replace(sequence=torch.tensor(sequence))
    labels, theirs = torch.tensor([0, 1, 2]), torch.tensor([0, 2])
    return debiased_likelihood(student, teacher, labels, theirs, given, WORDS, **{"temperature": 1.0, **settings})


def two_classes(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("least", [0.0, 0.1, 0.39])
def test_a_span_counts_with_stopping_after_it(least):
    values = of_two_spans(least=least)
    assert values.tolist() == pytest.approx([two_classes(0.7 * 0.4, 0.3 * 0.2), 0, two_classes(0.3, 0.2)])


@pytest.mark.parametrize("least", [0.41, 0.9])
def test_a_span_that_the_teacher_would_not_stop_at_is_joined_with_the_next(least):
    assert of_two_spans(least=least).tolist() == pytest.approx([two_classes(0.7 * 0.3, 0.3 * 0.2), 0, 0])


def test_the_last_span_of_a_response_needs_no_stop():
    """Else the first row of the next response would have its say."""
    values = of_two_spans(sequence=(0, 1), least=0.9)
    assert values.tolist() == pytest.approx([two_classes(0.7, 0.3), 0, two_classes(0.3, 0.2)])


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_where_every_id_is_a_boundary_there_is_nothing_to_correct(temperature):
    student, teacher = draw(5, 7), draw(4, 9, seed=1)
    labels, theirs = torch.tensor([0, 3, 6, 2, 1]), torch.tensor([0, 8, 2, 3])
    ranges = spans((0, 2, 0, 1), (2, 3, 1, 3), (3, 5, 3, 4))
    everything = Boundaries(torch.ones(7, dtype=torch.bool), torch.ones(9, dtype=torch.bool))
    values = debiased_likelihood(student, teacher, labels, theirs, ranges, everything, temperature=temperature)
    q, p = (z.log_softmax(-1).gather(1, y[:, None])[:, 0] for z, y in ((student, labels), (teacher, theirs)))
    plain = approximate_likelihood(q, p, ranges, temperature=temperature)
    torch.testing.assert_close(values, plain, rtol=1e-9, atol=1e-12)


def test_the_correction_teaches_where_to_stop():
    """The row after a span learns beside its label: mass goes from ids that go on to ids that stop, or back."""
    student, teacher = draw(3, 3).requires_grad_(), draw(2, 4, seed=1)
    given = (torch.tensor([0, 1, 2]), torch.tensor([0, 2]), spans(FIRST, SECOND), WORDS)
    assert torch.autograd.gradcheck(
        lambda z: debiased_likelihood(z, teacher, *given, temperature=5.0, least=0.0), student
    )
    first = debiased_likelihood(student, teacher, *given, least=0.0)[0]
    gradient = torch.autograd.grad(first, student)[0]
    assert (gradient[2].abs() > 0).all()
    assert gradient[2, 0] * gradient[2, 2] < 0


def test_no_span_at_all():
    values = approximate_likelihood(torch.tensor([-1.0]), torch.tensor([-1.0]), spans())
    assert values.tolist() == [0]
    id_ = torch.tensor([0])
    assert debiased_likelihood(draw(1, 3), draw(1, 4), id_, id_, spans(), WORDS).tolist() == [0]
    args = (draw(1, 3), draw(1, 3), torch.tensor([0]), torch.tensor([0]), spans(), torch.arange(3))
    assert merged_spans(*args).tolist() == [0]
