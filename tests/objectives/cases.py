"""Every divergence as code, as an independent numpy formula, and as the slope in its gradient formula."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from kd.objectives.adaptive import adaptive_kl, todi
from kd.objectives.alpha_beta import alpha_beta, alpha_divergence
from kd.objectives.decoupled import dkd
from kd.objectives.divergence import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    symmetric_kl,
    total_variation,
)
from kd.objectives.interpolated import TAID

P, Q = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)  # teacher, student


@dataclass(frozen=True)
class Case:
    """A divergence as code, as a numpy formula of (p, q), and its phi'(p, q) up to constants."""

    name: str
    loss: Callable
    value: Callable
    slope: Callable
    constants: bool = False  # something of q is held constant: the gradient is not the value's


def np_kl(p, q):
    return rel_entr(p, q).sum(-1)


def jsd_case(beta: float) -> Case:
    def m(p, q):
        return beta * p + (1 - beta) * q

    return Case(
        f"jsd({beta})",
        partial(generalized_jsd, beta=beta),
        lambda p, q: beta * np_kl(p, m(p, q)) + (1 - beta) * np_kl(q, m(p, q)),
        lambda p, q: (1 - beta) * np.log(q / m(p, q)),
    )


def skew_forward_case(alpha: float) -> Case:
    def m(p, q):
        return alpha * p + (1 - alpha) * q

    return Case(
        f"skew_forward_kl({alpha})",
        partial(skew_forward_kl, alpha=alpha),
        lambda p, q: np_kl(p, m(p, q)),
        lambda p, q: -(1 - alpha) * p / m(p, q),
    )


def skew_reverse_case(alpha: float, mixture_gradient: bool) -> Case:
    def m(p, q):
        return (1 - alpha) * p + alpha * q

    return Case(
        f"skew_reverse_kl({alpha}, mixture_gradient={mixture_gradient})",
        partial(skew_reverse_kl, alpha=alpha, mixture_gradient=mixture_gradient),
        lambda p, q: np_kl(q, m(p, q)),
        lambda p, q: np.log(q / m(p, q)) - (alpha * q / m(p, q) if mixture_gradient else 0),
        constants=not mixture_gradient,
    )


def symmetric_case(reverse: float) -> Case:
    return Case(
        f"symmetric_kl({reverse})",
        partial(symmetric_kl, reverse=reverse),
        lambda p, q: (1 - reverse) * np_kl(p, q) + reverse * np_kl(q, p),
        lambda p, q: reverse * np.log(q / p) - (1 - reverse) * p / q,
    )


def np_alpha_beta(p, q, alpha: float, beta: float):
    """Cichocki, Cruces & Amari 2011, and its limits as they print them."""
    if alpha == beta == 0:
        terms = 0.5 * (np.log(p) - np.log(q)) ** 2
    elif beta == 0:
        terms = (p**alpha * np.log(p**alpha / q**alpha) - p**alpha + q**alpha) / alpha**2
    elif alpha == 0:
        terms = (q**beta * np.log(q**beta / p**beta) - q**beta + p**beta) / beta**2
    elif alpha + beta == 0:
        terms = (np.log(q**alpha / p**alpha) + p**alpha / q**alpha - 1) / alpha**2
    else:
        s = alpha + beta
        terms = -(p**alpha * q**beta - alpha / s * p**s - beta / s * q**s) / (alpha * beta)
    return terms.sum(-1)


def np_alpha_beta_slope(p, q, alpha: float, beta: float):
    return q ** (beta - 1) * (np.log(q / p) if alpha == 0 else -(p**alpha - q**alpha) / alpha)


def alpha_beta_case(alpha: float, beta: float) -> Case:
    return Case(
        f"alpha_beta({alpha}, {beta})",
        partial(alpha_beta, alpha=alpha, beta=beta),
        partial(np_alpha_beta, alpha=alpha, beta=beta),
        partial(np_alpha_beta_slope, alpha=alpha, beta=beta),
    )


def alpha_case(alpha: float) -> Case:
    return Case(
        f"alpha_divergence({alpha})",
        partial(alpha_divergence, alpha=alpha),
        lambda p, q: ((p**alpha * q ** (1 - alpha)).sum(-1) - 1) / (alpha * (alpha - 1)),
        lambda p, q: -((p / q) ** alpha) / alpha,
    )


def np_forward_weight(p, q, mu: float):
    """AKL's share of forward KL, [..., 1], by walking down each row's sorted probabilities."""
    shares = []
    for row, other in zip(p.reshape(-1, p.shape[-1]), q.reshape(-1, p.shape[-1]), strict=True):
        order = np.argsort(-row)
        size = len(row) if mu == 1 else max(1, int((np.cumsum(row[order]) <= mu).sum()))
        gap = np.abs(row - other)[order]
        shares.append(gap[:size].sum() / gap.sum())
    return np.array(shares).reshape(*p.shape[:-1], 1)


def adaptive_case(mu: float) -> Case:
    def value(p, q):
        w = np_forward_weight(p, q, mu)[..., 0]
        return w * np_kl(p, q) + (1 - w) * np_kl(q, p)

    def slope(p, q):
        w = np_forward_weight(p, q, mu)
        return (1 - w) * np.log(q / p) - w * p / q

    return Case(f"adaptive_kl({mu})", partial(adaptive_kl, mu=mu), value, slope, constants=True)


def np_todi(p, q):
    w = 1 / (1 + q / p)
    return (w * p * np.log(p / q) + (1 - w) * q * np.log(q / p)).sum(-1)


def np_todi_slope(p, q):
    w = 1 / (1 + q / p)
    return (1 - w) * (1 + np.log(q / p)) - w * p / q


def taid_case(t: float) -> Case:
    def target(p, q):
        powers = p**t * q ** (1 - t)
        return powers / powers.sum(-1, keepdims=True)

    def loss(student, teacher, **temperature):
        return TAID(t_start=t, **temperature)(student, teacher)

    return Case(
        f"taid at t={t}", loss, lambda p, q: np_kl(target(p, q), q), lambda p, q: -target(p, q) / q, constants=True
    )


def dkd_case(alpha: float, beta: float) -> Case:
    """The label is the first id."""

    def loss(student, teacher, **temperature):
        labels = torch.zeros(student.shape[:-1], dtype=torch.int64)
        return dkd(student, teacher, labels, alpha=alpha, beta=beta, **temperature)

    def value(p, q):
        (a, b), (rest, other) = (p[..., 0], q[..., 0]), (p[..., 1:], q[..., 1:])
        binary = a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
        return alpha * binary + beta * np_kl(rest / rest.sum(-1, keepdims=True), other / other.sum(-1, keepdims=True))

    def slope(p, q):
        first, other = 1 - p[..., :1], 1 - q[..., :1]
        slopes = -alpha * first / other + beta * (1 / other - p / (q * first))
        slopes[..., 0] = -alpha * p[..., 0] / q[..., 0]
        return slopes

    return Case(f"dkd({alpha}, {beta})", loss, value, slope)


CASES = [
    Case("forward_kl", forward_kl, np_kl, lambda p, q: -p / q),
    Case("reverse_kl", reverse_kl, lambda p, q: np_kl(q, p), lambda p, q: np.log(q / p)),
    Case(
        "total_variation",
        total_variation,
        lambda p, q: 0.5 * np.abs(p - q).sum(-1),
        lambda p, q: 0.5 * np.sign(q - p),
    ),
    *map(jsd_case, (0.1, 0.5, 0.9)),
    *map(skew_forward_case, (0.1, 0.5, 0.9)),
    *(skew_reverse_case(alpha, flag) for alpha in (0.1, 0.5, 0.9) for flag in (True, False)),
    Case("soft_cross_entropy", soft_cross_entropy, lambda p, q: -(p * np.log(q)).sum(-1), lambda p, q: -p / q),
    *map(symmetric_case, (0.0, 0.3, 0.5, 1.0)),
    *map(alpha_case, (-1.0, 0.2, 0.5, 0.8, 2.0)),
    *(alpha_beta_case(*at) for at in ((0.2, 0.7), (0.7, 0.2), (1.0, 1.0), (2.0, -0.5), (-0.5, 1.5), (-0.3, -0.4))),
    *(alpha_beta_case(*at) for at in ((1.0, 0.0), (0.6, 0.0), (0.0, 1.0), (0.0, 0.6), (0.0, 0.0), (0.3, -0.3))),
    *map(adaptive_case, (0.0, 0.5, 0.9, 1.0)),
    Case("todi", todi, np_todi, np_todi_slope, constants=True),
    *map(taid_case, (0.25, 0.625, 1.0)),  # t is a float32
    *(dkd_case(*at) for at in ((1.0, 0.5), (0.0, 1.0), (2.0, 8.0))),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def logits_of(*rows) -> torch.Tensor:
    """Logits, with an offset that softmax takes away, of the distributions `rows`."""
    return torch.tensor(rows, dtype=torch.float64).log() + 3.0


def value(loss: Callable, p=P, q=Q) -> float:
    return loss(logits_of(q), logits_of(p)).item()


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss: Callable, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    leaf = student.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher).sum(), leaf)[0]
