"""Targets of K ids: what each tail rule is worth by hand, when it is the full loss, and what is exact about it."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kd.composition.targets import FREE, bears_zeros
from kd.kernels import over_chunks
from kd.kernels.logits import DenseLogits, HeadLogits
from kd.kernels.sparse import SparseLogits, evaluated
from kd.objectives.divergence import (
    cross_entropy,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    soft_cross_entropy,
    total_variation,
)
from kd.signals import requires
from kd.teachers.targets import Sampled, TopK, held_of, stored
from kd.types import Head
from tests.kernels.problem import assert_near
from tests.objectives.terms import ROW_WISE, world

P, Q = torch.tensor([[[0.5, 0.3, 0.15, 0.05]], [[0.4, 0.3, 0.2, 0.1]]], dtype=torch.float64)
N, V = 9, 23
ON_TEACHER = [t for t in ROW_WISE if "teacher_logits" in requires(t.loss)]
ON_CLASSES = [t for t in ON_TEACHER if all(name.endswith("_logits") or name in FREE for name in requires(t.loss))]
over_classes = pytest.mark.parametrize("term", ON_CLASSES, ids=lambda term: term.name)


def top(teacher: Tensor, k: int, tail: str = "tail_bucket", temperature: float = 1.0) -> SparseLogits:
    targets = TopK(k=k, tail=tail, temperature=temperature)
    return targets.read(targets.columns(DenseLogits(teacher)), teacher.shape[1])


def value_and_gradient(term: Callable, student: Tensor, teacher: Any, **more: Any) -> tuple[Tensor, Tensor]:
    leaf = student.detach().requires_grad_()
    given = {"student_logits": leaf, "teacher_logits": teacher, "native_teacher_logits": teacher, **more}
    value, _ = evaluated(term, {name: given[name] for name in requires(term)})
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def drawn(n: int = N, v: int = V) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(2 * torch.randn(n, v, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(
    ("tail", "value", "gradient"),
    [
        # 1/2 ln(5/4) + 0.3 ln 1 + 0.2 ln(2/3); q - p on the ids, and the tail's 0.3 - 0.2 shared as 2 : 1
        ("tail_bucket", 0.5 * math.log(1.25) + 0.2 * math.log(2 / 3), [-0.1, 0.0, 0.2 / 3, 0.1 / 3]),
        # p~ = (5/8, 3/8): 5/8 ln(25/16) + 3/8 ln(5/4); q - p~
        ("renormalise", 0.625 * math.log(25 / 16) + 0.375 * math.log(1.25), [-0.225, -0.075, 0.2, 0.1]),
        # 1/2 ln(5/4) + 0.3 ln 1; 0.8 (q - p~)
        ("zero", 0.5 * math.log(1.25), [-0.18, -0.06, 0.16, 0.08]),
    ],
)
def test_forward_kl_by_hand_on_two_of_four_ids(tail, value, gradient):
    got = value_and_gradient(forward_kl, Q.log() + 3, top(P.log() - 1, 2, tail))
    torch.testing.assert_close(got[0], torch.tensor([value], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(got[1], torch.tensor([gradient], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (reverse_kl, 0.4 * math.log(0.8) + 0.3 * math.log(1.5)),  # of (.4 .3 .3) to (.5 .3 .2)
        (total_variation, 0.1),  # (0.1 + 0 + 0.1) / 2
    ],
)
def test_other_divergences_by_hand_with_a_tail_bucket(term, value):
    got, _ = value_and_gradient(term, Q.log(), top(P.log(), 2))
    torch.testing.assert_close(got, torch.tensor([value], dtype=torch.float64), atol=1e-12, rtol=0)


def test_total_variation_by_hand_renormalised():
    # |5/8 - .4| + |3/8 - .3| + .2 + .1, halved: the student keeps its full vocabulary
    got, _ = value_and_gradient(total_variation, Q.log(), top(P.log(), 2, "renormalise"))
    torch.testing.assert_close(got, torch.tensor([0.3], dtype=torch.float64), atol=1e-12, rtol=0)


@over_classes
@pytest.mark.parametrize("tail", ["tail_bucket", "renormalise"])
def test_all_ids_are_the_full_loss(term, tail):
    if tail == "renormalise" and not bears_zeros(term.loss):
        pytest.skip("refused")
    given = world(batch=N, length=1, vocabulary=V).signals(term.loss)
    student, teacher = given.pop("student_logits"), given.pop("teacher_logits")
    expected = value_and_gradient(term.loss, student, teacher, **given)
    for k in (V, V + 5):
        got = value_and_gradient(term.loss, student, top(teacher, k, tail), **given)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("loss", [forward_kl, soft_cross_entropy])
def test_all_ids_are_the_full_loss_with_zero(temperature, squared, loss):
    term = partial(loss, temperature=temperature, temperature_squared=squared)
    student, teacher = drawn()
    expected = value_and_gradient(term, student, teacher)
    got = value_and_gradient(term, student, top(teacher, V, "zero", temperature))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("term", [forward_kl, reverse_kl, generalized_jsd, total_variation])
def test_a_tail_bucket_is_a_lower_bound_that_rises_with_k(term):
    student, teacher = drawn(50)
    full = term(student, teacher)
    values = torch.stack([value_and_gradient(term, student, top(teacher, k))[0] for k in range(1, V + 1)])
    assert (values <= full + 1e-12).all()
    assert (values.diff(dim=0) >= -1e-12).all()
    assert (full - values[3]).mean() > 1e-2  # at 4 of 23 ids something is missing


@pytest.mark.parametrize("tail", ["tail_bucket", "renormalise", "zero"])
def test_temperature_is_that_of_the_whole_distribution(tail):
    """The tail is heated before it is summed: log p / T of the K ids alone would not do."""
    student, teacher = drawn()
    term = partial(forward_kl, temperature=3.0)
    p, q = (teacher / 3).softmax(-1), (student / 3).softmax(-1)
    held = p.topk(4).indices
    p, q = p.gather(1, held), q.gather(1, held)
    mass, rest = p.sum(1), lambda x: 1 - x.sum(1)
    inside = (p * (p / q).log()).sum(1)
    expected = {
        "tail_bucket": inside + rest(p) * (rest(p) / rest(q)).log(),
        "renormalise": (inside - mass * mass.log()) / mass,
        "zero": inside,
    }
    got, _ = value_and_gradient(term, student, top(teacher, 4, tail, 3.0))
    torch.testing.assert_close(got, expected[tail], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("proposal", [1.0, 0.6])
@pytest.mark.parametrize("loss", [forward_kl, soft_cross_entropy])
def test_sampled_forward_kl_is_unbiased_in_value_and_gradient(proposal, temperature, loss):
    """Every draw of 3 from 4 ids, each with its probability: the mean is the full loss, not nearly so."""
    student, teacher = (x.repeat(4**3, 1) for x in drawn(1, 4))
    logprobs = (teacher / temperature).log_softmax(-1)
    drawing = (proposal * logprobs).log_softmax(-1)
    draws = torch.tensor(list(itertools.product(range(4), repeat=3)))
    probability = drawing.exp().gather(1, draws).prod(1)
    term = partial(loss, temperature=temperature, temperature_squared=True)
    columns = held_of(draws, logprobs, drawing)
    rows = Sampled(draws=3, proposal=proposal, temperature=temperature).read(columns, 4)
    got = value_and_gradient(term, student, rows)
    expected = value_and_gradient(term, student[:1], teacher[:1])
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(probability @ got[0], expected[0][0], rtol=1e-10, atol=0)
    torch.testing.assert_close(probability @ got[1], expected[1][0], rtol=1e-10, atol=1e-13)
    assert got[0].std() > 0.1  # one draw is far off


def test_sampled_reverse_kl_would_be_biased():
    """Which is why it is refused."""
    student, teacher = (x.repeat(4**3, 1) for x in drawn(1, 4))
    logprobs = teacher.log_softmax(-1)
    draws = torch.tensor(list(itertools.product(range(4), repeat=3)))
    probability = logprobs.exp().gather(1, draws).prod(1)
    rows = Sampled(draws=3).read(held_of(draws, logprobs, logprobs), 4)
    _, gradient = value_and_gradient(reverse_kl, student, rows)
    _, exact = value_and_gradient(reverse_kl, student[:1], teacher[:1])
    assert (probability @ gradient - exact[0]).norm() > exact.norm()


def test_draws_follow_the_proposal():
    teacher = P.log().repeat(4000, 1)
    columns = Sampled(draws=10, proposal=0.5).columns(DenseLogits(teacher), torch.Generator().manual_seed(0))
    rows = Sampled(draws=10, proposal=0.5).read(columns, 4)
    mean = torch.zeros(4).double().index_add(0, rows.ids[rows.ids >= 0], rows.weights[rows.ids >= 0]) / 4000
    torch.testing.assert_close(mean, P[0], atol=0.01, rtol=0)
    assert all(len(set(ids)) == len(ids) for row in rows.ids.tolist() for ids in [[i for i in row if i >= 0]])
    torch.testing.assert_close(
        rows.mass().clamp(max=1), P.repeat(4000, 1).gather(1, rows.ids.clamp(0)).mul(rows.ids >= 0).sum(1)
    )


def sparse_signals(rule: str, teacher: Tensor, labels: Tensor) -> dict[str, Any]:
    targets = Sampled(draws=6) if rule == "sampled" else TopK(k=5, tail=rule)
    kept = targets.read(targets.columns(DenseLogits(teacher), torch.Generator().manual_seed(1)), V)
    return {"teacher_logits": kept, "labels": labels}


@pytest.mark.parametrize("rule", ["tail_bucket", "renormalise", "zero", "sampled"])
@pytest.mark.parametrize("head", [{}, {"scale": 0.25, "soft_cap": 3.0}], ids=["plain", "scale and soft cap"])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunked_is_full(rule, head, chunk):
    """A term of the student alone sees its whole vocabulary beside."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 5, generator=generator).double().requires_grad_() for n in (N, V))
    labels = torch.randint(0, V, (N,), generator=generator)
    terms = {"fkl": forward_kl, "sft": cross_entropy}
    weights = {name: torch.rand(N, generator=generator).double() for name in terms}
    signals = sparse_signals(rule, drawn()[1], labels)
    student = HeadLogits(hidden, Head(weight, **head))
    wanted = {name: requires(term) for name, term in terms.items()}
    loss, values = over_chunks(terms, student, signals, weights, wanted, chunk=chunk)
    z = student.rows(slice(None))
    fkl, _ = evaluated(forward_kl, {"student_logits": z, "teacher_logits": signals["teacher_logits"]})
    sft = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    expected = (weights["fkl"] * fkl).sum() + (weights["sft"] * sft).sum()
    assert_near(values["fkl"], fkl.detach(), 1e-12)
    for one, other in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert_near(one, other, 1e-12)


def test_gradient_of_the_classes_is_that_of_autograd():
    z = drawn()[0].requires_grad_()
    ids = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(i))[:5] for i in range(N)])
    ids[:, 3:] = -1
    ids[4, 1:] = -1
    rows = SparseLogits(ids, torch.zeros(N, 5), torch.zeros(N), V, "tail_bucket")
    torch.autograd.gradcheck(lambda z: torch.where((c := rows.classes(z)).isneginf(), 0.0, c), (z,))


def test_rows_of_infinite_logits_have_finite_gradients():
    student, teacher = drawn()
    student[:, :3], teacher[:, 2:6] = -math.inf, -math.inf
    for tail, term in itertools.product(["tail_bucket", "renormalise"], [forward_kl, generalized_jsd, total_variation]):
        value, gradient = value_and_gradient(term, student, top(teacher, 21, tail))
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_stored_columns_are_small_and_near():
    teacher = drawn()[1]
    targets = TopK(k=6)
    exact = targets.columns(DenseLogits(teacher))
    small = stored(exact, "float16", V)
    assert {name: column.dtype for name, column in small.items()} == {
        "ids": torch.uint16,
        "logprobs": torch.float16,
        "tail": torch.float16,
    }
    rows = targets.read(small, V)
    assert torch.equal(rows.ids, exact["ids"])
    torch.testing.assert_close(rows.logprobs.double(), exact["logprobs"], rtol=5e-4, atol=0)
    assert stored(exact, "bfloat16", 1 << 17)["ids"].dtype == torch.int32


def test_an_empty_slot_has_no_gradient():
    """Whatever a term returns there: each held id gets its own 1, and the others share that of their class."""
    z = drawn()[0].requires_grad_()
    ids = torch.tensor([[4, 7, -1]]).repeat(N, 1)
    rows = SparseLogits(ids, torch.zeros(N, 3), torch.zeros(N), V, "tail_bucket")
    (gradient,) = torch.autograd.grad(rows.classes(z), z, torch.ones(N, 4, dtype=torch.float64))
    torch.testing.assert_close(gradient[:, [4, 7]], torch.ones(N, 2, dtype=torch.float64))
    torch.testing.assert_close(gradient.sum(1), torch.full((N,), 3.0, dtype=torch.float64))
