"""The alpha-beta family, adaptive mixtures and decoupled KL: paper and pencil, limits and relations.

Run: python -m pytest tests/objectives/test_divergence_families.py
"""

from decimal import Decimal, getcontext
from functools import partial
from math import log, sqrt

import pytest
import torch
from hydra import compose, initialize_config_dir
from mpmath import mp, mpf

from kd.components.choices import CONF
from kd.composition.check import check
from kd.objectives.adaptive import FIRST_LOOK, adaptive_kl, todi
from kd.objectives.alpha_beta import alpha_beta, alpha_divergence
from kd.objectives.decoupled import dkd
from kd.objectives.divergence import forward_kl, reverse_kl, soft_cross_entropy, symmetric_kl
from tests.objectives.cases import P, Q, draw, gradient, logits_of, np_forward_weight, value

FKL = 0.7 * log(0.7 / 0.4) + 0.2 * log(0.2 / 0.4) + 0.1 * log(0.1 / 0.2)  # .1838
RKL = 0.4 * log(0.4 / 0.7) + 0.4 * log(0.4 / 0.2) + 0.2 * log(0.2 / 0.1)  # .1920


def pair(scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(8, 11, scale=scale), draw(8, 11, seed=1, scale=scale)


def assert_same_loss(left, right, tolerance: float = 1e-12) -> None:
    """Same values and gradients on random logits."""
    student, teacher = pair(scale=1.0)
    torch.testing.assert_close(left(student, teacher), right(student, teacher), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient(left, student, teacher), gradient(right, student, teacher), rtol=tolerance, atol=tolerance
    )


# ---- cross-entropy and the symmetric mixture ----


def test_soft_cross_entropy_is_forward_kl_plus_the_teachers_entropy():
    entropy = -(0.7 * log(0.7) + 0.2 * log(0.2) + 0.1 * log(0.1))
    assert entropy == pytest.approx(0.8018, abs=5e-5)
    assert value(soft_cross_entropy) == pytest.approx(FKL + entropy, rel=1e-12)
    assert value(soft_cross_entropy, P, P) == pytest.approx(entropy, rel=1e-12)


def test_soft_cross_entropy_has_forward_kls_gradient():
    student, teacher = pair()
    expected = gradient(forward_kl, student, teacher)
    torch.testing.assert_close(gradient(soft_cross_entropy, student, teacher), expected, rtol=1e-12, atol=1e-13)


def test_symmetric_kl_by_hand():
    assert value(symmetric_kl) == pytest.approx((FKL + RKL) / 2, rel=1e-12)
    assert value(partial(symmetric_kl, reverse=0.9)) == pytest.approx(0.1 * FKL + 0.9 * RKL, rel=1e-12)


def test_only_half_and_half_may_exchange_the_models():
    student, teacher = pair()
    torch.testing.assert_close(symmetric_kl(student, teacher), symmetric_kl(teacher, student))
    assert not torch.allclose(symmetric_kl(student, teacher, reverse=0.9), symmetric_kl(teacher, student, reverse=0.9))


# ---- the alpha-beta family ----


def test_abkd_default_in_forty_digits():
    getcontext().prec = 40
    a, b, s = Decimal("0.2"), Decimal("0.7"), Decimal("0.9")
    p, q = (tuple(map(Decimal, ("0.7", "0.2", "0.1"))), tuple(map(Decimal, ("0.4", "0.4", "0.2"))))
    terms = (x**a * y**b - a / s * x**s - b / s * y**s for x, y in zip(p, q, strict=True))
    by_hand = float(-sum(terms) / (a * b))
    assert by_hand == pytest.approx(0.2113, abs=5e-5)
    assert value(alpha_beta) == pytest.approx(by_hand, rel=1e-12)


def test_half_the_squared_distance_at_1_1():
    # ((.7 - .4)^2 + (.2 - .4)^2 + (.1 - .2)^2) / 2 = .14 / 2
    assert value(partial(alpha_beta, alpha=1.0, beta=1.0)) == pytest.approx(0.07, rel=1e-12)


def test_half_the_squared_log_ratio_at_0_0():
    by_hand = (log(0.7 / 0.4) ** 2 + log(0.2 / 0.4) ** 2 + log(0.1 / 0.2) ** 2) / 2
    assert value(partial(alpha_beta, alpha=0.0, beta=0.0)) == pytest.approx(by_hand, rel=1e-12)


def test_itakura_saito_at_1_minus_1():
    # sum [log(q/p) + p/q - 1]; ABKD's code agrees here, where alpha = alpha^2
    by_hand = log(0.4 / 0.7) + 0.7 / 0.4 + log(0.4 / 0.2) + 0.2 / 0.4 + log(0.2 / 0.1) + 0.1 / 0.2 - 3
    assert value(partial(alpha_beta, alpha=1.0, beta=-1.0)) == pytest.approx(by_hand, rel=1e-12)


def test_alpha_one_half_is_four_times_hellinger():
    hellinger = ((sqrt(0.7) - sqrt(0.4)) ** 2 + (sqrt(0.2) - sqrt(0.4)) ** 2 + (sqrt(0.1) - sqrt(0.2)) ** 2) / 2
    assert value(alpha_divergence) == pytest.approx(4 * hellinger, rel=1e-12)


def test_alpha_two_is_half_of_chi_square():
    chi_square = 0.3**2 / 0.4 + 0.2**2 / 0.4 + 0.1**2 / 0.2  # .225 + .1 + .05
    assert value(partial(alpha_divergence, alpha=2.0)) == pytest.approx(chi_square / 2, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "plain"), [(1.0, 0.0, forward_kl), (0.0, 1.0, reverse_kl)])
def test_the_corners_are_the_kls(alpha, beta, plain):
    assert_same_loss(partial(alpha_beta, alpha=alpha, beta=beta), plain)
    assert_same_loss(partial(alpha_divergence, alpha=alpha), plain)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(1.0, 0.0), (0.6, 0.0), (-0.6, 0.0), (0.0, 1.0), (0.0, 0.6), (0.0, -0.6), (0.3, -0.3), (-0.5, 0.5), (0.0, 0.0)],
)
@pytest.mark.parametrize("step", [(1e-6, 0.0), (0.0, -1e-6), (1e-6, 1e-6), (-1e-6, 2e-6)])
def test_values_and_gradients_are_continuous_where_a_denominator_vanishes(alpha, beta, step):
    if alpha == beta == 0 and 0 not in step:
        step = tuple(1e3 * x for x in step)  # 1/(alpha beta) leaves no digits of float64 any nearer
    near = partial(alpha_beta, alpha=alpha + step[0], beta=beta + step[1])
    assert_same_loss(near, partial(alpha_beta, alpha=alpha, beta=beta), tolerance=1e2 * max(map(abs, step)))


@pytest.mark.parametrize("exponent", [0.0099, 0.0101, -0.0099, -0.0101])
@pytest.mark.parametrize("other", [0.7, -0.7])
def test_both_sides_of_the_switch_to_expm1_are_the_formula(exponent, other):
    getcontext().prec = 40
    a, b = Decimal(str(other)), Decimal(str(exponent))
    s = a + b
    p, q = (tuple(map(Decimal, ("0.7", "0.2", "0.1"))), tuple(map(Decimal, ("0.4", "0.4", "0.2"))))
    terms = (x**a * y**b - a / s * x**s - b / s * y**s for x, y in zip(p, q, strict=True))
    by_hand = float(-sum(terms) / (a * b))
    assert value(partial(alpha_beta, alpha=other, beta=exponent)) == pytest.approx(by_hand, rel=1e-11)
    assert value(partial(alpha_beta, alpha=exponent, beta=other), Q, P) == pytest.approx(by_hand, rel=1e-11)
    single = alpha_beta(logits_of(Q).float(), logits_of(P).float(), alpha=other, beta=exponent)
    assert single.item() == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("at", [(0.2, 0.7), (1.3, -0.4), (0.0, 0.5), (0.3, -0.3)])
def test_exchanging_models_and_exponents_changes_nothing(at):
    student, teacher = pair()
    there = alpha_beta(student, teacher, alpha=at[0], beta=at[1])
    back = alpha_beta(teacher, student, alpha=at[1], beta=at[0])
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


@pytest.mark.parametrize("at", [(0.2, 0.7), (0.7, 0.2), (1.0, 0.0), (0.0, 0.0), (2.0, -1.0), (-0.5, 0.5), (0.003, 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zero_at_equality_with_any_exponents(at, dtype):
    logits = draw(4, 20_000).to(dtype)
    assert (alpha_beta(logits, logits, alpha=at[0], beta=at[1]) == 0).all()
    found = gradient(partial(alpha_beta, alpha=at[0], beta=at[1]), logits, logits)
    assert found.abs().max() <= (3e-5 if dtype == torch.float32 else 1e-13)  # powers above 1 are rounded more


@pytest.mark.parametrize("at", [(2.0, -1.0), (-1.0, 2.0), (0.5, -0.5), (-0.2, -0.7), (0.0, 0.0), (0.003, 0.9)])
def test_saturated_logits_are_finite_with_any_exponents(at):
    student, teacher = (z.float() for z in pair(scale=2000))
    student[:, 3], teacher[:, 4] = -torch.inf, -torch.inf
    loss = partial(alpha_beta, alpha=at[0], beta=at[1])
    assert loss(student, teacher).isfinite().all()
    assert gradient(loss, student, teacher).isfinite().all()


def closed_form(student: list[float], teacher: list[float], a: float, b: float) -> tuple[float, list[float], float]:
    """Value, dL/dz_i = q_i (phi'_i - sum_j q_j phi'_j), sum_j q_j |phi'_j| of the docstring's formulas; 80 digits."""
    with mp.workdps(80):
        a, b = mpf(a), mpf(b)
        s = a + b if abs(a + b) > mpf(10) ** -12 else mpf(0)  # of exponents that add up to 0 but for rounding
        p, q = ([mp.exp(z) / mp.fsum(map(mp.exp, zs)) for z in zs] for zs in (teacher, student))
        of = {
            "both": lambda p, q: mp.log(p / q) ** 2 / 2,
            "beta": lambda p, q: (p**a * mp.log(p**a / q**a) - p**a + q**a) / a**2,
            "alpha": lambda p, q: (q**b * mp.log(q**b / p**b) - q**b + p**b) / b**2,
            "sum": lambda p, q: (mp.log(q**a / p**a) + p**a / q**a - 1) / a**2,
            "none": lambda p, q: -(p**a * q**b - (a * p**s + b * q**s) / s) / (a * b),
        }["both" if a == b == 0 else "beta" if b == 0 else "alpha" if a == 0 else "sum" if s == 0 else "none"]
        phi = [y ** (b - 1) * (mp.log(y / x) if a == 0 else -(x**a - y**a) / a) for x, y in zip(p, q, strict=True)]
        mean = mp.fsum(y * f for y, f in zip(q, phi, strict=True))
        slopes = [float(y * (f - mean)) for y, f in zip(q, phi, strict=True)]
        size = mp.fsum(abs(y * f) for y, f in zip(q, phi, strict=True))
        return float(mp.fsum(of(x, y) for x, y in zip(p, q, strict=True))), slopes, float(size)


EXPONENTS = [(2.0, -1.0), (-1.0, 2.0), (1.5, -0.5), (3.0, -2.0), (-0.5, 1.5), (1.0, -1.0), (-0.2, -0.7), (2.5, 1.5)]
EXPONENTS += [(2.0, 0.0), (0.0, 2.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 0.0), (0.3, -0.3)]  # limits
EXPONENTS += [(0.2, 0.7), (0.5, 0.5), (1.0, 0.005), (-0.005, 1.0)]


@pytest.mark.parametrize("at", EXPONENTS)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([-40.0, 0.0], [0.0, 0.0]),  # what the teacher says half of the time the student all but excludes
        ([0.0, 0.0], [-30.0, 0.0]),
        ([-17.0, 0.0, 15.0, 1.0], [15.0, -20.0, 0.0, 1.0]),
        ([1.0, 0.0, -1.0], [1.5, -0.5, -1.0]),
    ],
)
def test_any_exponents_have_the_closed_forms_value_and_gradient(student, teacher, at):
    found, slopes, size = closed_form(student, teacher, *at)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        if dtype == torch.float32 and max(size, found) > 1e30:
            continue
        z = torch.tensor([student], dtype=dtype, requires_grad=True)
        values = alpha_beta(z, torch.tensor([teacher], dtype=dtype), alpha=at[0], beta=at[1])
        assert values.item() == pytest.approx(found, rel=tolerance, abs=tolerance)
        values.sum().backward()
        assert z.grad[0].tolist() == pytest.approx(slopes, rel=tolerance, abs=tolerance * max(size, 1.0))


def test_chi_square_teaches_what_the_student_all_but_excludes():
    """q = (e^-40, 1), p = (1/2, 1/2): value p^2/q/2, slope q phi' = -p^2/q/2 = -e^40/8 = -2.94e16."""
    z = torch.tensor([[-40.0, 0.0]], requires_grad=True)
    alpha_divergence(z, torch.zeros(1, 2), alpha=2.0).sum().backward()
    assert z.grad[0].tolist() == pytest.approx([-2.9423e16, 2.9423e16], rel=1e-4)


@pytest.mark.parametrize("far", [-75.0, -90.0, -1e4, -torch.inf])
def test_beyond_the_largest_power_the_slope_keeps_its_direction(far):
    """A number of float32 and not 0, however far the student is; -inf is the student's own mask."""
    z = torch.tensor([[far, 0.0, 1.0]], requires_grad=True)
    values = alpha_divergence(z, torch.zeros(1, 3), alpha=2.0)
    values.sum().backward()
    assert 1e28 < values.item() < 1e32
    if far > -torch.inf:
        assert -1e32 < z.grad[0, 0].item() < -1e28
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("value", ["1e300", ".nan", "11", "-.inf"])
def test_exponents_out_of_range_are_refused_before_anything_loads(value):
    overrides = ["teacher=tiny", "student=tiny", "skill=spell_backward", "objective=ab"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=[*overrides, f"objective.ab.loss.alpha={value}"])
    with pytest.raises(ValueError, match=r"objective\.ab\.loss\.alpha=.* between -10 and 10"):
        check(config)


# ---- adaptive KL ----


def test_adaptive_kl_by_hand_where_one_id_is_the_head():
    # p_1 = .7 exceeds mu = .5 alone and is the head still: gaps .3 | .2 + .1
    assert value(adaptive_kl) == pytest.approx(0.5 * FKL + 0.5 * RKL, rel=1e-12)


FOUR, OTHER = (0.4, 0.3, 0.2, 0.1), (0.2, 0.3, 0.1, 0.4)  # gaps .2, 0, .1, .3


@pytest.mark.parametrize(
    ("mu", "weight"),
    [
        (0.0, 1 / 3),  # head {.4}: .2 of .6
        (0.5, 1 / 3),  # .4 + .3 crosses .5, and what crosses is tail
        (0.75, 1 / 3),  # head {.4, .3}: (.2 + 0) of .6
        (0.95, 1 / 2),  # head {.4, .3, .2}: (.2 + 0 + .1) of .6
        (1.0, 1.0),
    ],
)
def test_adaptive_kl_by_hand(mu, weight):
    to_student = sum(p * log(p / q) for p, q in zip(FOUR, OTHER, strict=True))
    to_teacher = sum(q * log(q / p) for p, q in zip(FOUR, OTHER, strict=True))
    by_hand = weight * to_student + (1 - weight) * to_teacher
    assert value(partial(adaptive_kl, mu=mu), FOUR, OTHER) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_ids_as_probable_as_the_last_of_the_head_belong_to_it(order):
    # .4 + .2 <= .65 < .4 + .2 + .2: a sort would take one of the three .2, whichever comes first
    p, q = [0.4, 0.2, 0.2, 0.2], [0.1, 0.5, 0.3, 0.1]
    all_head = sum(a * log(a / b) for a, b in zip(p, q, strict=True))  # so forward KL alone
    found = value(partial(adaptive_kl, mu=0.65), [p[i] for i in order], [q[i] for i in order])
    assert found == pytest.approx(all_head, rel=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("mu", [0.5, 0.97])
def test_a_head_of_more_ids_than_the_first_look(scale, mu):
    student, teacher = draw(6, 9 * FIRST_LOOK, scale=scale), draw(6, 9 * FIRST_LOOK, seed=1, scale=scale)
    weight = torch.from_numpy(np_forward_weight(teacher.softmax(-1).numpy(), student.softmax(-1).numpy(), mu))[:, 0]
    expected = weight * forward_kl(student, teacher) + (1 - weight) * reverse_kl(student, teacher)
    torch.testing.assert_close(adaptive_kl(student, teacher, mu=mu), expected, rtol=1e-10, atol=0)


def test_adaptive_weights_are_constants():
    student, teacher = pair()
    weight = torch.from_numpy(np_forward_weight(teacher.softmax(-1).numpy(), student.softmax(-1).numpy(), 0.5))
    forward, reverse = gradient(forward_kl, student, teacher), gradient(reverse_kl, student, teacher)
    expected = weight * forward + (1 - weight) * reverse
    torch.testing.assert_close(gradient(adaptive_kl, student, teacher), expected, rtol=1e-10, atol=1e-13)


# ---- ToDi ----


def test_todi_by_hand():
    # w = p/(p + q) = (7/11, 1/3, 1/3)
    ratios = (log(0.7 / 0.4), log(0.2 / 0.4), log(0.1 / 0.2))
    by_hand = sum((w * p - (1 - w) * q) * r for w, p, q, r in zip((7 / 11, 1 / 3, 1 / 3), P, Q, ratios, strict=True))
    assert value(todi) == pytest.approx(by_hand, rel=1e-12)


def test_todi_has_jeffreys_value_and_another_gradient():
    student, teacher = pair()
    jeffreys = partial(symmetric_kl, reverse=0.5)
    torch.testing.assert_close(todi(student, teacher), 2 * jeffreys(student, teacher), rtol=1e-12, atol=0)
    assert not torch.allclose(gradient(todi, student, teacher), 2 * gradient(jeffreys, student, teacher), rtol=0.1)


# ---- decoupled ----


def test_dkd_by_hand():
    # label 1: b_p = (.2, .8), b_q = (.4, .6); the rest (.7, .1)/.8 and (.4, .2)/.6
    binary = 0.2 * log(0.2 / 0.4) + 0.8 * log(0.8 / 0.6)
    rest = 7 / 8 * log((7 / 8) / (2 / 3)) + 1 / 8 * log((1 / 8) / (1 / 3))
    found = dkd(logits_of(Q), logits_of(P), torch.tensor([1]), alpha=2.0, beta=3.0).item()
    assert found == pytest.approx(2 * binary + 3 * rest, rel=1e-12)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_dkd_recovers_forward_kl(label):
    loss = partial(dkd, labels=torch.tensor([label]), alpha=1.0, beta=1 - P[label])
    assert value(loss) == pytest.approx(FKL, rel=1e-12)
    expected = gradient(forward_kl, logits_of(Q), logits_of(P))
    torch.testing.assert_close(gradient(loss, logits_of(Q), logits_of(P)), expected, rtol=1e-12, atol=1e-13)


def test_dkd_sees_the_rest_where_both_are_sure_of_the_label():
    # 1 - p_y = 2e^-40 has no digits in float32, its shares have: p_rest = (3/4, 1/4), q_rest = (1/4, 3/4)
    teacher, student = torch.tensor([[40.0, log(3.0), 0.0]]), torch.tensor([[40.0, 0.0, log(3.0)]])
    found = dkd(student, teacher, torch.tensor([0]), alpha=0.0, beta=1.0).item()
    assert found == pytest.approx(0.75 * log(3) - 0.25 * log(3), rel=1e-5)
