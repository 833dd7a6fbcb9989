"""The chunked head pass equals the plain one: all logits at once, autograd through everything.

Run: python -m pytest tests/kernels/test_chunks.py
"""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kd.kernels import chunks, products
from kd.kernels.chunks import chunk_rows, slices
from kd.kernels.logits import HeadLogits
from kd.objectives.divergence import forward_kl, reverse_kl
from kd.signals import is_row_wise
from kd.types import Head
from tests.kernels.problem import (
    COMBINATIONS,
    HEADS,
    UNKNOWN,
    D,
    N,
    V,
    assert_chunked_is_full,
    assert_near,
    chunked,
    combinations,
    every_head,
    every_objective,
    full,
    problem,
)

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


# ---- pieces and libraries ----


@combinations
@pytest.mark.parametrize("piece", [1, 3 * V, 5 * V])
def test_a_cpu_evaluates_a_chunk_in_pieces(terms, piece, monkeypatch):
    monkeypatch.setattr(chunks, "PIECE", piece)
    assert_chunked_is_full(terms, problem(terms, bias=True, soft_cap=3.0), chunk=7)


@pytest.mark.parametrize("faster", [True, False])
@combinations
def test_either_library_multiplies(terms, faster, monkeypatch):
    if faster and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: faster)
    assert_chunked_is_full(terms, problem(terms, torch.float32, bias=True), chunk=5, tolerance=1e-5)


def test_a_chunk_is_48_mib_of_logits_and_at_least_128_rows():
    assert chunk_rows(49_152, torch.float32) == 256  # 256 x 49152 x 4 bytes = 48 MiB
    assert chunk_rows(49_152, torch.bfloat16) == 512
    assert chunk_rows(151_936, torch.float32) == 128  # 82 would be 48 MiB
