"""Ours against hand-written float64 formulas: value and gradient, every beta and temperature.

Run: make parity ARGS=tests/parity/test_by_hand.py
"""

from functools import partial

import pytest
import torch

from kd.objectives.divergence import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    soft_cross_entropy,
)
from tests.parity.pair import assert_same, by_hand, ours, pair

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
betas = pytest.mark.parametrize("beta", BETAS)
temperatures = pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])


@betas
@temperatures
def test_generalized_jsd(beta, temperature):
    given = pair()
    found = ours(given, partial(generalized_jsd, beta=beta, temperature=temperature), "sum")
    assert_same(given, found, by_hand(given, beta, temperature))


@betas
def test_float32_within_the_gate(beta):
    given = pair(torch.float32)
    found = ours(given, partial(generalized_jsd, beta=beta), "sum")
    assert_same(given, found, by_hand(given, beta), 1e-6)


def test_both_ends_have_names_of_their_own():
    given = pair()
    assert_same(given, ours(given, forward_kl, "sum"), by_hand(given, 0.0))
    assert_same(given, ours(given, reverse_kl, "sum"), by_hand(given, 1.0))


@temperatures
def test_the_switch_multiplies_by_temperature_squared(temperature):
    given = pair()
    found = ours(given, partial(forward_kl, temperature=temperature, temperature_squared=True), "sum")
    assert_same(given, found, temperature**2 * by_hand(given, 0.0, temperature))


def test_cross_entropy_form_is_larger_by_the_teachers_entropy():
    given = pair()
    p = given.teacher[given.mask].softmax(-1)
    entropy = -(p * p.log()).sum()
    assert_same(given, ours(given, soft_cross_entropy, "sum"), by_hand(given, 0.0) + entropy)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_skewed_divergences(alpha):
    given = pair()
    q, p = (z[given.mask].softmax(-1) for z in (given.student, given.teacher))
    m = alpha * p + (1 - alpha) * q
    expected = (p * (p / m).log()).sum()
    assert_same(given, ours(given, partial(skew_forward_kl, alpha=alpha), "sum"), expected)
    m = (1 - alpha) * p + alpha * q
    expected = (q * (q / m).log()).sum()
    assert_same(given, ours(given, partial(skew_reverse_kl, alpha=alpha), "sum"), expected)
    held = (1 - alpha) * p + alpha * q.detach()
    expected = (q * (q / held).log()).sum()
    detached = partial(skew_reverse_kl, alpha=alpha, mixture_gradient=False)
    assert_same(given, ours(given, detached, "sum"), expected)


def test_reductions():
    given = pair()
    q, p = (z.double().softmax(-1) for z in (given.student, given.teacher))
    values = (p * (p / q).log()).sum(-1) * given.mask
    lengths = given.mask.sum(-1)
    assert_same(given, ours(given, forward_kl, "token"), values.sum() / lengths.sum())
    assert_same(given, ours(given, forward_kl, "sequence"), (values.sum(-1) / lengths).mean())
    assert_same(given, ours(given, forward_kl, "sum"), values.sum())
