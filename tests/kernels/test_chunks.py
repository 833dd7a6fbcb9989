"""The chunked head pass equals the plain one: all logits at once, autograd through everything.

Run: python -m pytest tests/kernels/test_chunks.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.kernels import chunks, over_chunks
from kd.kernels.chunks import slices
from kd.kernels.logits import DenseLogits, HeadLogits
from kd.objectives.divergence import cross_entropy, forward_kl, generalized_jsd, reverse_kl
from kd.signals import is_row_wise, requires
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
    """The reference: every logit at once."""
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
    values = {name: loss(**{signal: supply[signal] for signal in requires(loss)}) for name, loss in terms.items()}
    return torch.stack([(given.weights[name] * value).sum() for name, value in values.items()]).sum(), values


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
    for name, value in expected_values.items():
        assert not values[name].requires_grad
        assert_near(values[name], value, tolerance)
    gradients = torch.autograd.grad(loss, given.leaves)
    for gradient, expected in zip(gradients, torch.autograd.grad(expected_loss, given.leaves), strict=True):
        assert_near(gradient, expected, tolerance)


# ---- equality ----


@pytest.mark.parametrize("chunk", [1, 5, N, N + 7])
@every_objective
def test_every_row_wise_objective(terms, chunk):
    assert_chunked_is_full(terms, problem(terms, bias=True, scale=0.25, soft_cap=3.0), chunk)


@every_head
@combinations
def test_every_head(terms, head):
    assert_chunked_is_full(terms, problem(terms, **head), chunk=3)


@pytest.mark.parametrize("terms", [{name: loss} for name, loss in UNKNOWN.items()], ids=list(UNKNOWN))
@pytest.mark.parametrize("chunk", [1, 5, N])
def test_a_divergence_that_the_repository_does_not_know(terms, chunk):
    assert all(is_row_wise(loss) for loss in terms.values())
    assert_chunked_is_full(terms, problem(terms, bias=True), chunk)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@combinations
def test_every_precision(terms, dtype, tolerance):
    for head in HEADS.values():
        assert_chunked_is_full(terms, problem(terms, dtype, **head), chunk=5, tolerance=tolerance)


@combinations
def test_under_autocast(terms):
    given = problem(terms, torch.float32, bias=True, soft_cap=3.0)
    exact = torch.autograd.grad(full(terms, given)[0], given.leaves)
    with torch.autocast("cpu", torch.bfloat16):
        assert_chunked_is_full(terms, given, chunk=5, tolerance=2e-2)
        loss, _ = chunked(terms, given, chunk=5)
    differences = [abs(a - b).max() for a, b in zip(torch.autograd.grad(loss, given.leaves), exact, strict=True)]
    assert max(differences) > 1e-5  # it did run in bf16


@pytest.mark.parametrize("chunk", [1, 5, N + 7])
def test_a_head_tied_to_the_embeddings(chunk):
    terms = COMBINATIONS["sft and fkl"]
    embeddings = torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    given = problem(terms)
    tied = replace(given, student=HeadLogits(torch.tanh(embeddings[given.labels.roll(1)]), Head(embeddings)))
    found, expected = (
        torch.autograd.grad(loss, embeddings, retain_graph=True)[0]
        for loss in (chunked(terms, tied, chunk)[0], full(terms, tied)[0])
    )
    assert_near(found, expected, 1e-12)


def test_bf16_gradients_do_not_drown_in_many_chunks():
    # One row a chunk: 512 roundings of the head's gradient to 8 bits would add up; sums kept in float32 do not.
    terms = {"rkl": reverse_kl}
    given = problem(terms, torch.bfloat16, n=512)
    exact = replace(
        given,
        student=HeadLogits(given.student.hidden.double(), Head(given.student.head.weight.double())),
        teacher=HeadLogits(given.teacher.hidden.double(), Head(given.teacher.head.weight.double())),
    )
    truth = torch.autograd.grad(full(terms, exact)[0], given.leaves)[1].double()
    plain = torch.autograd.grad(full(terms, given)[0], given.leaves)[1].double()
    found = torch.autograd.grad(chunked(terms, given, chunk=1)[0], given.leaves)[1].double()
    assert (found - truth).norm() <= 2 * (plain - truth).norm()


def test_the_gradient_of_a_bf16_head_in_several_pieces(monkeypatch):
    monkeypatch.setattr(chunks, "BLOCK", 4)  # of 11 ids
    terms = COMBINATIONS["everything"]
    assert_chunked_is_full(terms, problem(terms, torch.bfloat16, bias=True), chunk=5, tolerance=2e-2)


def test_finite_differences():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, n=4, ids=5, bias=True, scale=0.5, soft_cap=3.0)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        student = HeadLogits(hidden, given.student.head._replace(weight=weight, bias=bias))
        return chunked(terms, replace(given, student=student), chunk=3)[0]

    assert torch.autograd.gradcheck(loss, given.leaves)


# ---- what surrounds it ----


def test_the_upstream_gradient_multiplies():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, bias=True)
    once = torch.autograd.grad(chunked(terms, given, 5)[0], given.leaves)
    thrice = torch.autograd.grad(3 * chunked(terms, given, 5)[0], given.leaves)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-14, atol=0)


def test_gradients_add_to_those_of_another_path():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms)
    both = chunked(terms, given, 5)[0] + given.student.hidden.square().sum()
    expected = full(terms, given)[0] + given.student.hidden.square().sum()
    for a, b in zip(*(torch.autograd.grad(loss, given.leaves) for loss in (both, expected)), strict=True):
        assert_near(a, b, 1e-12)


def test_each_term_has_its_own_weights():
    terms = COMBINATIONS["three divergences"]
    given = problem(terms)
    silent = {name: torch.zeros(N, dtype=torch.float64) for name in terms}
    for name, loss in terms.items():
        alone = chunked(terms, replace(given, weights={**silent, name: given.weights[name]}), 5)[0]
        assert_near(alone, chunked({name: loss}, given, 5)[0], 1e-12)


def test_a_row_of_weight_zero_teaches_nothing():
    terms = {"fkl": forward_kl}
    given = problem(terms)
    weights = given.weights["fkl"].clone()
    weights[4] = 0
    loss, _ = chunked(terms, replace(given, weights={"fkl": weights}), 5)
    gradient = torch.autograd.grad(loss, given.student.hidden)[0]
    assert (gradient[4] == 0).all()
    assert (gradient[[3, 5]] != 0).any(-1).all()


def test_a_frozen_head_gets_no_gradient():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, bias=True)
    expected = torch.autograd.grad(full(terms, given)[0], given.student.hidden)[0]
    given.student.head.weight.requires_grad_(False)
    given.student.head.bias.requires_grad_(False)
    chunked(terms, given, 5)[0].backward()
    assert given.student.head.weight.grad is None
    assert given.student.head.bias.grad is None
    assert_near(given.student.hidden.grad, expected, 1e-12)


def test_frozen_hidden_states_get_no_gradient():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms)
    expected = torch.autograd.grad(full(terms, given)[0], given.student.head.weight)[0]
    given.student.hidden.requires_grad_(False)
    chunked(terms, given, 5)[0].backward()
    assert given.student.hidden.grad is None
    assert_near(given.student.head.weight.grad, expected, 1e-12)


def test_the_teacher_gets_no_gradient_even_where_it_could():
    seen = []

    def watched(student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        seen.append((student_logits.requires_grad, teacher_logits.requires_grad))
        return forward_kl(student_logits, teacher_logits)

    terms = {"watched": watched}
    given = problem(terms)
    given.teacher.hidden.requires_grad_()
    given.teacher.head.weight.requires_grad_()
    chunked(terms, given, 5)[0].backward()
    assert set(seen) == {(True, False)}
    assert given.teacher.hidden.grad is None
    assert given.teacher.head.weight.grad is None


def test_a_term_without_the_student_is_a_constant():
    def entropy(teacher_logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
        p = teacher_logits.log_softmax(-1)
        return -(p.exp() * p).sum(-1)

    terms = {"entropy": entropy}
    given = problem(terms)
    loss, _ = chunked(terms, given, 5)
    assert_near(loss, full(terms, given)[0], 1e-12)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, given.leaves))


def test_zero_rows():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, n=0, bias=True)
    loss, values = chunked(terms, given, 5)
    assert loss.item() == 0
    assert all(value.shape == (0,) for value in values.values())
    assert set(values) == set(terms)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, given.leaves))


def test_a_second_derivative_is_refused():
    terms = {"fkl": forward_kl}
    given = problem(terms)
    squared = chunked(terms, given, 5)[0].square()
    first = torch.autograd.grad(squared, given.student.hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(("n", "chunk"), [(0, 3), (1, 3), (3, 3), (7, 3), (7, 9)])
def test_slices_cover_every_row_once(n, chunk):
    rows = [i for piece in slices(n, chunk) for i in range(n)[piece]]
    assert rows == list(range(n))
    assert all(piece.stop - piece.start <= chunk for piece in slices(n, chunk))


# ---- cost ----


class Spy(TorchDispatchMode):
    """Sees every tensor that any operation makes, forward and backward, and counts the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.products = 0
        self.casts = 0  # of whole heads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *made])
        self.casts += function.overloadpacket is torch.ops.aten._to_copy and result.shape == (IDS, D)
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return result


def test_under_autocast_the_heads_are_converted_once():
    terms = {"fkl": forward_kl}
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    adapted = given.student.head.weight * 1.0  # no leaf, as under LoRA: autocast remembers leaves only
    given = replace(given, student=HeadLogits(given.student.hidden, Head(adapted)))
    with torch.autocast("cpu", torch.bfloat16), Spy() as spy:
        chunked(terms, given, CHUNK)
    assert spy.casts == 2  # student's and teacher's, not once a chunk


ROWS, IDS, CHUNK = 64, 97, 8  # the head itself has IDS * D < 2 * CHUNK * IDS elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_objective
def test_no_tensor_holds_the_logits_of_two_chunks(terms, dtype):
    given = problem(terms, dtype, n=ROWS, ids=IDS, bias=True, soft_cap=30.0)
    with Spy() as spy:
        chunked(terms, given, CHUNK)[0].backward()
    assert spy.largest < 2 * CHUNK * IDS
    assert spy.largest >= CHUNK * IDS  # it did look


def test_the_plain_path_would_be_seen():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    with Spy() as spy:
        full(terms, given)[0].backward()
    assert spy.largest >= ROWS * IDS


@combinations
def test_all_terms_share_one_head_pass(terms):
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    with Spy() as spy:
        chunked(terms, given, CHUNK)[0].backward()
    assert spy.products == (ROWS // CHUNK) * 4  # a chunk: logits of both models, gradients of hidden states and head


def test_without_gradients_only_logits_are_made():
    terms = COMBINATIONS["everything"]
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    expected_loss, expected = full(terms, given)
    with torch.no_grad(), Spy() as spy:
        loss, values = chunked(terms, given, CHUNK)
    assert spy.products == (ROWS // CHUNK) * 2
    assert not loss.requires_grad
    assert_near(loss, expected_loss, 1e-5)
    for name, value in expected.items():
        assert_near(values[name], value, 1e-5)
