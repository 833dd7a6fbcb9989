"""Every divergence as code, as an independent numpy formula, and as the slope in its gradient formula."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from kd.objectives.divergence import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
)

P, Q = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)  # teacher, student


@dataclass(frozen=True)
class Case:
    """A divergence as code, as a numpy formula of (p, q), and its phi'(p, q) up to constants."""

    name: str
    loss: Callable
    value: Callable
    slope: Callable


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
    )


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
