"""Divergences against paper and pencil, an independent reference, and their gradient formula.

Run: python -m pytest tests/objectives/test_divergence.py
"""

from functools import partial
from math import log

import numpy as np
import pytest
import torch
from scipy.special import softmax

from kd.objectives.divergence import (
    cross_entropy,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from tests.objectives.cases import CASES, P, Q, draw, each_case, gradient, logits_of, value


def test_forward_kl_by_hand():
    by_hand = 0.7 * log(0.7 / 0.4) + 0.2 * log(0.2 / 0.4) + 0.1 * log(0.1 / 0.2)  # .39173 - .13863 - .06931
    assert by_hand == pytest.approx(0.1838, abs=5e-5)
    assert value(forward_kl) == pytest.approx(by_hand, rel=1e-12)


def test_reverse_kl_by_hand():
    by_hand = 0.4 * log(0.4 / 0.7) + 0.4 * log(0.4 / 0.2) + 0.2 * log(0.2 / 0.1)  # -.22385 + .27726 + .13863
    assert by_hand == pytest.approx(0.1920, abs=5e-5)
    assert value(reverse_kl) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("beta", "m", "published"),
    [
        (0.5, (0.55, 0.30, 0.15), 0.0462),
        (0.1, (0.43, 0.38, 0.19), 0.0165),  # .1 of the teacher: .1 * .7 + .9 * .4 = .43
        (0.9, (0.67, 0.22, 0.11), 0.0171),  # .9 of the teacher: .9 * .7 + .1 * .4 = .67
    ],
)
def test_jsd_by_hand_and_beta_weights_the_teacher(beta, m, published):
    to_teacher = 0.7 * log(0.7 / m[0]) + 0.2 * log(0.2 / m[1]) + 0.1 * log(0.1 / m[2])
    to_student = 0.4 * log(0.4 / m[0]) + 0.4 * log(0.4 / m[1]) + 0.2 * log(0.2 / m[2])
    by_hand = beta * to_teacher + (1 - beta) * to_student
    assert by_hand == pytest.approx(published, abs=5e-5)
    assert value(partial(generalized_jsd, beta=beta)) == pytest.approx(by_hand, rel=1e-12)


def test_skew_forward_kl_by_hand():
    # m = .1 p + .9 q = (.43, .38, .19)
    by_hand = 0.7 * log(0.7 / 0.43) + 0.2 * log(0.2 / 0.38) + 0.1 * log(0.1 / 0.19)
    assert value(partial(skew_forward_kl, alpha=0.1)) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("mixture_gradient", [True, False])
def test_skew_reverse_kl_by_hand(mixture_gradient):
    # m = .9 p + .1 q = (.67, .22, .11); the switch changes the gradient alone
    by_hand = 0.4 * log(0.4 / 0.67) + 0.4 * log(0.4 / 0.22) + 0.2 * log(0.2 / 0.11)
    loss = partial(skew_reverse_kl, alpha=0.1, mixture_gradient=mixture_gradient)
    assert value(loss) == pytest.approx(by_hand, rel=1e-12)


def test_total_variation_by_hand_and_as_the_largest_difference_over_events():
    assert value(total_variation) == pytest.approx(0.5 * (0.3 + 0.2 + 0.1), rel=1e-12)
    events = [[i for i in range(3) if code >> i & 1] for code in range(8)]
    assert value(total_variation) == pytest.approx(max(abs(sum(P[i] - Q[i] for i in event)) for event in events))


def test_cross_entropy_by_hand():
    logprobs = torch.tensor([log(0.25), 0.0])
    torch.testing.assert_close(cross_entropy(logprobs), torch.tensor([log(4), 0.0]))


def test_forward_kl_gradient_by_hand():
    # q - p = (.4 - .7, .4 - .2, .2 - .1)
    expected = torch.tensor([[-0.3, 0.2, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(gradient(forward_kl, logits_of(Q), logits_of(P)), expected, rtol=1e-12, atol=1e-12)


# ---- against an independent reference, and the gradient formula ----


@each_case
def test_value_equals_the_numpy_formula(case):
    student, teacher = draw(64, 23), draw(64, 23, seed=1)
    expected = case.value(softmax(teacher.numpy(), -1), softmax(student.numpy(), -1))
    np.testing.assert_allclose(case.loss(student, teacher).numpy(), expected, rtol=1e-10)
    single = case.loss(student.float(), teacher.float())
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5)


@each_case
def test_gradient_equals_the_master_formula(case):
    # dL/dz_i = q_i (phi'_i - sum_j q_j phi'_j)
    student, teacher = draw(64, 23), draw(64, 23, seed=1)
    p, q = softmax(teacher.numpy(), -1), softmax(student.numpy(), -1)
    slope = case.slope(p, q)
    expected = q * (slope - (q * slope).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient(case.loss, student, teacher).numpy(), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", [c for c in CASES if not c.constants], ids=lambda c: c.name)
def test_gradient_equals_finite_differences(case):
    student, teacher = draw(2, 3, 5).requires_grad_(), draw(2, 3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda z: case.loss(z, teacher, temperature=1.3), (student,))


@each_case
def test_leading_axes_are_rows(case):
    student, teacher = draw(2, 3, 7), draw(2, 3, 7, seed=1)
    values = case.loss(student, teacher)
    assert values.shape == (2, 3)
    flat = case.loss(student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(values.flatten(), flat, rtol=1e-12, atol=1e-12)
