"""A small student, teacher and head; the plain path that the chunked one must equal; the terms it is tried on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kd.kernels import over_chunks
from kd.kernels.logits import DenseLogits, HeadLogits
from kd.objectives.divergence import cross_entropy, forward_kl, generalized_jsd, reverse_kl
from kd.signals import requires, separated
from kd.types import Head
from tests.objectives.terms import ROW_WISE, world

N, V, D = 12, 11, 5  # rows, ids, width
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "soft_cap": {"soft_cap": 3.0},
    "bias, scale and soft cap": {"bias": True, "scale": 0.25, "soft_cap": 3.0},
}


def jeffreys(student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """KL(p || q) + KL(q || p), which the repository does not know."""
    p, q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def chi_square(
    student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"], *, power: float = 2.0
) -> Float[Tensor, "*n"]:
    """sum |p - q|^power / q, which it does not know either."""
    p, q = teacher_logits.softmax(-1), student_logits.softmax(-1)
    return ((p - q).abs() ** power / q).sum(-1)


UNKNOWN = {"jeffreys": jeffreys, "chi_square": partial(chi_square, power=2.5)}
OBJECTIVES = {term.name: {term.name: term.loss} for term in ROW_WISE}
COMBINATIONS = {
    "sft and fkl": {"sft": cross_entropy, "fkl": forward_kl},
    "three divergences": {"rkl": reverse_kl, "jsd": partial(generalized_jsd, beta=0.3), "jeffreys": jeffreys},
    "everything": {term.name: term.loss for term in ROW_WISE} | UNKNOWN,
}
EVERYTHING = OBJECTIVES | COMBINATIONS
every_objective = pytest.mark.parametrize("terms", EVERYTHING.values(), ids=list(EVERYTHING))
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
combinations = pytest.mark.parametrize("terms", COMBINATIONS.values(), ids=list(COMBINATIONS))


@dataclass(frozen=True)
class Problem:
    """A student's hidden states and head, with what the terms are computed from and their rows' weights."""

    student: HeadLogits
    teacher: HeadLogits
    labels: Tensor
    signals: Mapping[str, Any]  # of other roles, over all rows
    weights: Mapping[str, Tensor]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What may learn."""
        hidden, head = self.student.hidden, self.student.head
        return tuple(x for x in (hidden, head.weight, head.bias) if x is not None)


def problem(
    terms: Mapping[str, Callable],
    dtype: torch.dtype = torch.float64,
    n: int = N,
    ids: int = V,
    bias: bool = False,
    **head: Any,
) -> Problem:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def half(requires_grad: bool) -> HeadLogits:
        hidden, weight = draw(n, D).requires_grad_(requires_grad), draw(ids, D).requires_grad_(requires_grad)
        return HeadLogits(hidden, Head(weight, draw(ids).requires_grad_(requires_grad) if bias else None, **head))

    others: dict[str, Any] = {}
    for loss in terms.values():
        others |= world(batch=n, length=1, vocabulary=ids).to(dtype).signals(loss)
    labels = torch.randint(0, ids, (n,), generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    weights = {name: (i + 1) * draw(n).to(wide).abs() / n for i, name in enumerate(terms)}
    return Problem(half(True), half(False), labels, others, weights)


def full(terms: Mapping[str, Callable], given: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference: every logit at once. Metrics stand beside the values, as `<term>/<metric>`."""
    hidden, head = given.student.hidden, given.student.head
    z = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    z = z if head.soft_cap is None else head.soft_cap * torch.tanh(z / head.soft_cap)
    wide = z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1)
    teacher = given.teacher
    supply = {
        **given.signals,
        "student_logits": z,
        "student_logprobs": wide.gather(-1, given.labels[:, None])[:, 0],
        "teacher_logits": teacher.rows(slice(None)),
        "labels": given.labels,
    }
    told = {n: separated(loss(**{signal: supply[signal] for signal in requires(loss)})) for n, loss in terms.items()}
    metrics = {f"{name}/{metric}": x for name, (_, each) in told.items() for metric, x in each.items()}
    values = {name: value for name, (value, _) in told.items()}
    return torch.stack([(given.weights[name] * value).sum() for name, value in values.items()]).sum(), values | metrics


def chunked(terms: Mapping[str, Callable], given: Problem, chunk: int) -> tuple[Tensor, dict[str, Tensor]]:
    lazy = {name: DenseLogits(value) for name, value in given.signals.items() if name.endswith("_logits")}
    signals = {**given.signals, **lazy, "teacher_logits": given.teacher, "labels": given.labels}
    wanted = {name: requires(loss) for name, loss in terms.items()}
    return over_chunks(terms, given.student, signals, given.weights, wanted, chunk=chunk)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to `tolerance`, relative in norm."""
    assert actual.dtype == expected.dtype
    difference = (actual.double() - expected.double()).norm()
    assert difference <= tolerance * expected.double().norm(), f"off by {difference / expected.double().norm():.1e}"


def assert_chunked_is_full(terms: Mapping[str, Callable], given: Problem, chunk: int, tolerance: float = 1e-12) -> None:
    loss, values = chunked(terms, given, chunk)
    expected_loss, expected_values = full(terms, given)
    assert_near(loss, expected_loss, tolerance)
    assert values.keys() == expected_values.keys()
    for name, value in expected_values.items():
        assert not values[name].requires_grad
        assert_near(values[name], value, tolerance)
    gradients = torch.autograd.grad(loss, given.leaves)
    for gradient, expected in zip(gradients, torch.autograd.grad(expected_loss, given.leaves), strict=True):
        assert_near(gradient, expected, tolerance)
