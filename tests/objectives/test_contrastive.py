"""Divergences by writer: which side gets which, by hand on three tokens.

Run: python -m pytest tests/objectives/test_contrastive.py
"""

from functools import partial
from math import exp, log

import pytest
import torch

from kd.objectives.contrastive import distillm2, distillm2_adaptive, two_sided_jsd
from kd.objectives.divergence import generalized_jsd, skew_forward_kl, skew_reverse_kl
from kd.objectives.reduction import Counts, reduce
from kd.signals import ROW, is_row_wise
from kd.types import WRITERS, Progress
from tests.objectives.cases import P, Q, draw, gradient, logits_of

REFERENCE, TEACHER, OWN = (WRITERS.index(name) for name in ("reference", "teacher", "student"))
START, MIDDLE, END = Progress(0, 8), Progress(2, 8), Progress(8, 8)


def by(*writers: int) -> torch.Tensor:
    return torch.tensor(writers)


def one(loss, writer: int, p=P, q=Q) -> float:
    return loss(logits_of(q), logits_of(p), written_by=by(writer)).item()


def skewed(a, b, alpha: float) -> float:
    """KL(a || alpha a + (1 - alpha) b), number by number."""
    return sum(x * log(x / (alpha * x + (1 - alpha) * y)) for x, y in zip(a, b, strict=True))


# ---- f-Distill -------------------------------------------------------------------------------------------------------


def test_each_side_of_jensen_shannon_by_hand():
    # P = (.7, .2, .1), Q = (.4, .4, .2), m = (.55, .3, .15)
    on_teachers = 0.7 * log(0.7 / 0.55) + 0.2 * log(0.2 / 0.3) + 0.1 * log(0.1 / 0.15)
    on_own = 0.4 * log(0.4 / 0.55) + 0.4 * log(0.4 / 0.3) + 0.2 * log(0.2 / 0.15)
    assert one(two_sided_jsd, TEACHER) == pytest.approx(on_teachers)
    assert one(two_sided_jsd, REFERENCE) == pytest.approx(on_teachers)
    assert one(two_sided_jsd, OWN) == pytest.approx(on_own)


def test_the_two_sides_are_the_jsd_of_the_usual_kind_together():
    student, teacher = draw(4, 7), draw(4, 7, seed=1)
    sides = [partial(two_sided_jsd, written_by=by(*[writer] * 4)) for writer in (TEACHER, OWN)]
    for measured in (lambda loss: loss(student, teacher), lambda loss: gradient(loss, student, teacher)):
        torch.testing.assert_close(sum(0.5 * measured(side) for side in sides), measured(generalized_jsd))


def test_half_of_the_text_from_each_side_makes_the_papers_halves():
    # Two responses of two tokens, one of each writer: the mean over tokens is 1/2 of each side's mean.
    student, teacher = draw(4, 7), draw(4, 7, seed=1)
    values = two_sided_jsd(student, teacher, by(TEACHER, TEACHER, OWN, OWN))
    mean = reduce(values, torch.ones(2, 2, dtype=torch.bool), Counts(4.0, 2.0, 1.0), domain=ROW)
    expected = 0.5 * skew_forward_kl(student[:2], teacher[:2], alpha=0.5).mean()
    expected = expected + 0.5 * skew_reverse_kl(student[2:], teacher[2:], alpha=0.5).mean()
    torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=0)


# ---- DistiLLM-2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("progress", "beta"), [(START, 1.0), (MIDDLE, 1.25), (Progress(4, 8), 1.5), (END, 1.5)])
def test_distillm2_by_hand(progress, beta):
    # beta: 1 -> 1.5 over the first half of the run
    loss = partial(distillm2, progress=progress, alpha=0.1)
    assert one(loss, TEACHER) == pytest.approx((2 - beta) * skewed(P, Q, 0.1))
    assert one(loss, REFERENCE) == pytest.approx((2 - beta) * skewed(P, Q, 0.1))
    assert one(loss, OWN) == pytest.approx(beta * skewed(Q, P, 0.1))


@pytest.mark.parametrize("mixture_gradient", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillm2_is_the_two_skew_divergences(mixture_gradient, temperature):
    student, teacher, writers = draw(6, 7), draw(6, 7, seed=1), by(TEACHER, OWN, OWN, REFERENCE, OWN, TEACHER)
    shared = {"alpha": 0.2, "temperature": temperature, "temperature_squared": True}
    loss = partial(
        distillm2, written_by=writers, progress=MIDDLE, mixture_gradient=mixture_gradient, final_beta=1.6, **shared
    )  # beta = 1.3
    forward = partial(skew_forward_kl, **shared)
    reverse = partial(skew_reverse_kl, mixture_gradient=mixture_gradient, **shared)
    own = writers == OWN
    expected = torch.where(own, 1.3 * reverse(student, teacher), 0.7 * forward(student, teacher))
    torch.testing.assert_close(loss(student, teacher), expected)
    of_two = [gradient(side, student, teacher) for side in (reverse, forward)]
    expected = torch.where(own[:, None], 1.3 * of_two[0], 0.7 * of_two[1])
    torch.testing.assert_close(gradient(loss, student, teacher), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_skew(alpha):
    student, teacher = draw(4, 7), draw(4, 7, seed=1)
    loss = partial(distillm2, written_by=by(TEACHER, OWN, TEACHER, OWN), progress=START, alpha=alpha)
    assert loss(student, teacher).isfinite().all()
    assert gradient(loss, student, teacher).isfinite().all()
    if alpha == 1.0:  # everything is compared with itself
        assert loss(student, teacher).abs().max() <= 1e-14


# ---- with a skew of each response ------------------------------------------------------------------------------------


def adaptive(writer: int, p_mean: float, q_mean: float, **settings) -> float:
    """On a row of a response whose tokens have these geometric mean probabilities; beta = 1."""
    loss = partial(
        distillm2_adaptive,
        teacher_mean_logprobs=torch.tensor([log(p_mean)], dtype=torch.float64),
        student_mean_logprobs=torch.tensor([log(q_mean)], dtype=torch.float64),
        progress=START,
        **settings,
    )
    return one(loss, writer)


@pytest.mark.parametrize(
    ("gap", "alpha"),
    [
        (0.2, 0.1),  # d = 0.2 = gap: alpha itself
        (0.05, 0.1),  # surer than is typical: not above alpha
        (0.21, 1 - 0.9 * 0.21 / 0.20001),  # in between: 0.055
        (0.5, 0.01),  # hardly surer: not below 0.01
    ],
)
def test_the_skew_by_hand(gap, alpha):
    # The writer is surer by 0.6 - 0.4, whichever it is; d is that and the released 1e-5.
    assert adaptive(TEACHER, 0.6, 0.4, teacher_gap=gap) == pytest.approx(skewed(P, Q, alpha))
    assert adaptive(OWN, 0.4, 0.6, student_gap=gap) == pytest.approx(skewed(Q, P, alpha))


def test_who_is_less_sure_of_its_own_text_keeps_alpha():
    assert adaptive(TEACHER, 0.4, 0.6) == pytest.approx(skewed(P, Q, 0.1))
    assert adaptive(OWN, 0.6, 0.4) == pytest.approx(skewed(Q, P, 0.1))


def test_a_smaller_alpha_than_the_smallest_skew_stays():
    assert adaptive(TEACHER, 0.6, 0.4, alpha=0.001, teacher_gap=0.5) == pytest.approx(skewed(P, Q, 0.001))


def test_the_skew_is_held_constant():
    # All else equal, the same as distillm2 with that skew, in gradient too.
    student, teacher, writers = draw(3, 7), draw(3, 7, seed=1), by(TEACHER, OWN, TEACHER)
    means = [torch.full((3,), log(x), dtype=torch.float64) for x in (0.4, 0.6)]
    shared = {"written_by": writers, "progress": START}
    loss = partial(
        distillm2_adaptive, student_mean_logprobs=means[0], teacher_mean_logprobs=means[1], teacher_gap=0.21, **shared
    )
    d = exp(means[1][0].item()) - exp(means[0][0].item()) + 1e-5
    skew = 1 - 0.9 * 0.21 / d
    fixed = [partial(distillm2, alpha=a, **shared) for a in (skew, 0.1)]  # the student is not surer of its own: 0.1
    own = (writers == OWN)[:, None]
    expected = torch.where(own, *(gradient(f, student, teacher) for f in reversed(fixed)))
    torch.testing.assert_close(gradient(loss, student, teacher), expected)


def test_the_head_runs_in_chunks():
    assert all(is_row_wise(loss) for loss in (two_sided_jsd, distillm2, distillm2_adaptive))
