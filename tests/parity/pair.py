"""Student and teacher logits, hand-written float64 losses, and what it means that two losses are the same.

Dimensions: B sequences, T positions, V ids. Shift and mask are made: position t predicts label t.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kd.objectives.reduction import Counts, Reduction, reduce

B, T, V = 3, 7, 37
LENGTHS = (7, 4, 1)  # response tokens of each sequence
IGNORED = -100


@dataclass(frozen=True)
class Pair:
    """What two models say about B sequences."""

    student: Tensor  # [B T V], with gradient
    teacher: Tensor  # [B T V]
    mask: Tensor  # [B T], True at response tokens
    labels: Tensor  # [B T], IGNORED elsewhere

    @property
    def counts(self) -> Counts:
        """Of this batch as the whole optimizer step."""
        return Counts(float(self.mask.sum()), float(len(self.mask)), float(len(self.mask)))


def pair(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> Pair:
    draw = torch.Generator().manual_seed(5)
    student, teacher = (scale * torch.randn(B, T, V, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(T) >= T - torch.tensor(LENGTHS)[:, None]
    labels = torch.randint(0, V, (B, T), generator=draw).masked_fill(~mask, IGNORED)
    return Pair(student.to(dtype).requires_grad_(), teacher.to(dtype), mask, labels)


def ours(given: Pair, objective: Callable[[Tensor, Tensor], Tensor], reduction: Reduction = "token") -> Tensor:
    """The objective at the loss rows, reduced as in training."""
    values = objective(given.student[given.mask], given.teacher[given.mask])
    return reduce(values, given.mask, given.counts, domain="*n", reduction=reduction)


def by_hand(given: Pair, beta: float, temperature: float = 1.0) -> Tensor:
    """Sum over loss rows of the generalized JSD in float64, from probabilities and not from log-probabilities."""
    q, p = ((z[given.mask].double() / temperature).softmax(-1) for z in (given.student, given.teacher))
    if beta == 0:
        return (p * (p / q).log()).sum()
    if beta == 1:
        return (q * (q / p).log()).sum()
    m = beta * p + (1 - beta) * q
    return (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum()


def assert_same(given: Pair, a: Tensor, b: Tensor, tolerance: float = 1e-7) -> None:
    """Equal in value and in gradient, relative in norm; the default leaves room for float32 row weights."""
    assert_equal(a.detach(), b.detach(), tolerance)
    gradients = (torch.autograd.grad(loss, given.student, retain_graph=True)[0] for loss in (a, b))
    assert_equal(*gradients, tolerance)


def assert_equal(a: Tensor, b: Tensor, tolerance: float) -> None:
    gap = float((a.double() - b.double()).norm() / b.double().norm())
    assert gap <= tolerance, f"{gap:.1e} apart"
