"""Limits, symmetries and bounds of the divergences, temperature, and ids that a model excludes.

Run: python -m pytest tests/objectives/test_divergence_relations.py
"""

from functools import partial
from math import log

import pytest
import torch

from kd.objectives.divergence import (
    LOG_ZERO,
    forward_kl,
    generalized_jsd,
    kl,
    mixture,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)
from tests.objectives.cases import P, Q, draw, each_case, gradient, logits_of, value

# ---- relations ----


def test_reversing_the_roles_reverses_the_kl():
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    torch.testing.assert_close(forward_kl(student, teacher), reverse_kl(teacher, student), rtol=1e-12, atol=0)


def test_jsd_over_its_weight_tends_to_the_kls():
    # JSD(beta) = beta FKL + O(beta^2); the other end mirrors it.
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    small = 1e-6
    forward = generalized_jsd(student, teacher, beta=small) / small
    reverse = generalized_jsd(student, teacher, beta=1 - small) / small
    torch.testing.assert_close(forward, forward_kl(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(reverse, reverse_kl(student, teacher), rtol=1e-4, atol=0)


def test_jsd_ends_are_the_kls_with_a_jump():
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    at = partial(generalized_jsd, student, teacher)
    torch.testing.assert_close(at(beta=0.0), forward_kl(student, teacher), rtol=0, atol=0)
    torch.testing.assert_close(at(beta=1.0), reverse_kl(student, teacher), rtol=0, atol=0)
    assert (at(beta=1e-3) < 0.01 * at(beta=0.0)).all()
    assert (at(beta=1 - 1e-3) < 0.01 * at(beta=1.0)).all()


def test_jsd_is_symmetric_in_the_middle_and_bounded_by_log_2():
    student, teacher = draw(8, 11, scale=20), draw(8, 11, seed=1, scale=20)
    torch.testing.assert_close(generalized_jsd(student, teacher), generalized_jsd(teacher, student))
    assert generalized_jsd(student, teacher).max() <= log(2)
    assert generalized_jsd(student, teacher).max() > 0.99 * log(2)  # nearly disjoint


def test_jsd_swaps_roles_and_beta_together():
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    torch.testing.assert_close(generalized_jsd(student, teacher, beta=0.2), generalized_jsd(teacher, student, beta=0.8))


@pytest.mark.parametrize(("skew", "plain"), [(skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)])
def test_without_skew_it_is_the_plain_kl(skew, plain):
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    torch.testing.assert_close(skew(student, teacher, alpha=0.0), plain(student, teacher), rtol=0, atol=0)
    torch.testing.assert_close(skew(student, teacher, alpha=1e-9), plain(student, teacher), rtol=1e-5, atol=0)


@pytest.mark.parametrize("skew", [skew_forward_kl, skew_reverse_kl])
def test_full_skew_is_zero(skew):
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    assert (skew(student, teacher, alpha=1.0) == 0).all()
    assert skew(student, teacher, alpha=1 - 1e-6).max() < 1e-5


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_skew_bounds_the_gradient(alpha):
    # phi' lies in [-(1 - alpha)/alpha, 0], so |dL/dz_i| <= q_i (1 - alpha)/alpha, however wrong the student is.
    student, teacher = draw(64, 23, scale=60), draw(64, 23, seed=1, scale=60)
    found = gradient(partial(skew_forward_kl, alpha=alpha), student, teacher)
    q = student.softmax(-1)
    assert (found.abs() <= q * (1 - alpha) / alpha * (1 + 1e-9) + 1e-15).all()
    assert not (gradient(forward_kl, student, teacher).abs() <= q * (1 - alpha) / alpha + 1e-15).all()


def test_the_mixture_gradient_switch_removes_its_term():
    # with - without = q_i (s_i - sum_j q_j s_j), s = -alpha q/m
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    p, q = teacher.softmax(-1), student.softmax(-1)
    s = -0.3 * q / (0.7 * p + 0.3 * q)
    expected = q * (s - (q * s).sum(-1, keepdim=True))
    full = gradient(partial(skew_reverse_kl, alpha=0.3), student, teacher)
    stopped = gradient(partial(skew_reverse_kl, alpha=0.3, mixture_gradient=False), student, teacher)
    torch.testing.assert_close(full - stopped, expected, rtol=1e-9, atol=1e-13)


# ---- temperature ----


@each_case
def test_temperature_divides_both_logits(case):
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    warm = case.loss(student, teacher, temperature=2.5)
    torch.testing.assert_close(warm, case.loss(student / 2.5, teacher / 2.5), rtol=1e-12, atol=0)
    scaled = case.loss(student, teacher, temperature=2.5, temperature_squared=True)
    torch.testing.assert_close(scaled, warm * 6.25, rtol=1e-12, atol=0)


def test_temperature_squared_keeps_the_gradients_scale():
    # Hinton et al., section 2.1: at high temperature dL/dz_i -> (z_i - v_i) / (V T^2) for centred logits z, v.
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    hot = partial(forward_kl, temperature=1e4, temperature_squared=True)
    torch.testing.assert_close(gradient(hot, student, teacher), centred / 11, rtol=1e-2, atol=1e-3)
    bare = gradient(partial(forward_kl, temperature=1e4), student, teacher)
    torch.testing.assert_close(bare * 1e8, centred / 11, rtol=1e-2, atol=1e-3)


# ---- ids that a model excludes ----

HALVES, QUARTERS = (0.5, 0.5, 0.0), (0.25, 0.25, 0.5)  # the logit of 0.0 is -inf


def test_the_floor_carries_no_mass():
    assert torch.tensor(LOG_ZERO).exp() < torch.finfo(torch.float32).tiny


def test_forward_kl_where_the_student_excludes_an_id():
    # p = (1/4, 1/4, 1/2), log q = (log 1/2, log 1/2, -100)
    by_hand = 2 * 0.25 * log(0.25 / 0.5) + 0.5 * (log(0.5) - LOG_ZERO)
    assert value(forward_kl, QUARTERS, HALVES) == pytest.approx(by_hand, rel=1e-12)


def test_reverse_kl_where_the_teacher_excludes_an_id():
    by_hand = 2 * 0.25 * log(0.25 / 0.5) + 0.5 * (log(0.5) - LOG_ZERO)
    assert value(reverse_kl, HALVES, QUARTERS) == pytest.approx(by_hand, rel=1e-12)


def test_the_side_that_excludes_does_not_pay():
    assert value(forward_kl, HALVES, QUARTERS) == pytest.approx(2 * 0.5 * log(0.5 / 0.25), rel=1e-12)
    assert value(reverse_kl, QUARTERS, HALVES) == pytest.approx(2 * 0.5 * log(0.5 / 0.25), rel=1e-12)


def test_mixtures_where_one_model_excludes_an_id():
    # teacher (1/2, 1/2, 0), student (1/4, 1/4, 1/2)
    m = 0.375  # of the first two ids, at weights 1/2; the third has 1/4
    jsd = 0.5 * 2 * 0.5 * log(0.5 / m) + 0.5 * (2 * 0.25 * log(0.25 / m) + 0.5 * log(0.5 / 0.25))
    assert value(generalized_jsd, HALVES, QUARTERS) == pytest.approx(jsd, rel=1e-12)
    skew_reverse = 2 * 0.25 * log(0.25 / 0.475) + 0.5 * log(0.5 / 0.05)  # m = .9 p + .1 q
    assert value(partial(skew_reverse_kl, alpha=0.1), HALVES, QUARTERS) == pytest.approx(skew_reverse, rel=1e-12)
    skew_forward = 2 * 0.25 * log(0.25 / 0.475) + 0.5 * log(0.5 / 0.05)  # roles swapped: m = .1 p + .9 q
    assert value(partial(skew_forward_kl, alpha=0.1), QUARTERS, HALVES) == pytest.approx(skew_forward, rel=1e-12)
    assert value(total_variation, HALVES, QUARTERS) == pytest.approx(0.5, rel=1e-12)  # (1/4 + 1/4 + 1/2) / 2


@each_case
def test_an_id_that_both_exclude_does_not_exist(case):
    with_zero = value(case.loss, (0.7, 0.2, 0.1, 0.0), (0.4, 0.4, 0.2, 0.0))
    assert with_zero == pytest.approx(value(case.loss), rel=1e-12)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl])
def test_gradient_where_the_student_excludes_an_id(loss):
    # Over the ids that remain to the student, z_i moves q as if the excluded id were not there: master formula with
    # its sums over those ids.
    student, teacher = logits_of((0.6, 0.4, 0.0)), logits_of((0.25, 0.25, 0.5))
    p, q = torch.tensor([[0.25, 0.25], [0.6, 0.4]], dtype=torch.float64)
    slope = -p / q if loss is forward_kl else (q / p).log()
    expected = torch.cat([q * (slope - (q * slope).sum()), torch.zeros(1)])
    torch.testing.assert_close(gradient(loss, student, teacher)[0], expected, rtol=1e-12, atol=1e-12)


# ---- parts ----


def test_mixture_of_underflowed_probabilities_keeps_its_gradient():
    # Probabilities of e^-300 vanish in float32, their mixture's logarithm does not: log(.5 e^-300 + .5 e^-300) = -300.
    p, q = torch.tensor([[-300.0, 0.0]]), torch.tensor([[-300.0, 0.0]], requires_grad=True)
    m = mixture(p, q, 0.5)
    torch.testing.assert_close(m, p)
    torch.testing.assert_close(torch.autograd.grad(m[0, 0], q)[0], torch.tensor([[0.5, 0.0]]))


def test_mixture_weights_its_first_argument():
    p, q = logits_of(P).log_softmax(-1), logits_of(Q).log_softmax(-1)
    torch.testing.assert_close(mixture(p, q, 0.25).exp(), torch.tensor([[0.475, 0.35, 0.175]]).double())
    assert mixture(p, q, 0.0) is q
    assert mixture(p, q, 1.0) is p


def test_kl_is_blind_to_the_rounding_of_a_normaliser():
    # A float32 log-probability near -11 is rounded by up to 5e-7, the same way for all ids of a row. To first order,
    # p log(p/q) alone would add that to a divergence of 5e-5.
    p = draw(8, 500).log_softmax(-1)
    q = (p + draw(8, 500, seed=1, scale=0.01)).log_softmax(-1)
    assert kl(p, q).max() < 1e-4
    torch.testing.assert_close(kl(p + 5e-7, q), kl(p, q), rtol=1e-6, atol=0)
    torch.testing.assert_close(kl(p, q + 5e-7), kl(p, q), rtol=1e-6, atol=1e-12)


def test_kl_has_the_gradient_of_its_formula():
    p, q = draw(8, 11).log_softmax(-1), draw(8, 11, seed=1)
    plain = gradient(lambda z, p: (p.exp() * (p - z.log_softmax(-1))).sum(-1), q, p)
    torch.testing.assert_close(gradient(lambda z, p: kl(p, z.log_softmax(-1)), q, p), plain, rtol=1e-12, atol=1e-15)
