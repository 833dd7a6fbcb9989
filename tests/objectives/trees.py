"""Every response of at most three tokens over three ids, and models of them that are tables: nothing is sampled.

Id 0 ends a response, so there are 15 of them, of lengths 1, 2 and 3, after 7 prefixes.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from kd.kernels.logits import label_logprobs

V, T, END, PAD = 3, 3, 0, 1


def _responses() -> list[tuple[int, ...]]:
    every = (y for length in (1, 2, 3) for y in product(range(V), repeat=length))
    return [y for y in every if END not in y[:-1] and (y[-1] == END or len(y) == T)]


RESPONSES = _responses()
PREFIXES = sorted({y[:t] for y in RESPONSES for t in range(len(y))}, key=lambda prefix: (len(prefix), prefix))
MASK = torch.tensor([[t < len(y) for t in range(T)] for y in RESPONSES])
LABELS = torch.tensor([[*y, *[PAD] * (T - len(y))] for y in RESPONSES])
PLACES = torch.tensor([[PREFIXES.index(y[:t]) if t < len(y) else 0 for t in range(T)] for y in RESPONSES])


def table(seed: int) -> Tensor:
    """Logits after each prefix, [7 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)


def logits(model: Tensor) -> Tensor:
    """Of a table, at every position of every response: [15 3 3]."""
    return model[PLACES]


def logprobs(model: Tensor) -> Tensor:
    """Of the labels, [15 3]; 0 where no label counts."""
    return label_logprobs(logits(model).flatten(0, 1), LABELS.flatten()).view(LABELS.shape).masked_fill(~MASK, 0.0)


def probabilities(model: Tensor) -> Tensor:
    """Of each response, [15], as constants: the chance to draw it."""
    return logprobs(model).sum(-1).exp().detach()


def expected(values: Tensor, drawn_from: Tensor) -> Tensor:
    """sum_y P(y) sum_t values[y, t], P held constant."""
    return (probabilities(drawn_from)[:, None] * values.where(MASK, 0.0)).sum()


def gradient(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """Of a scalar, with respect to the student's table."""
    leaf = student.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def sequence_reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_y q(y) [log q(y) - log p(y)], differentiable in all of it."""
    log_q, log_p = logprobs(student).sum(-1), logprobs(teacher).sum(-1)
    return (log_q.exp() * (log_q - log_p)).sum()


STUDENT, TEACHER = table(0), table(1)
