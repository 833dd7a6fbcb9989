"""Dual-space distillation with projections that do nothing, and who learns what from which part.

Run: python -m pytest tests/objectives/test_dual_space.py
"""

import math

import pytest
import torch
from torch import nn

from kd.objectives.divergence import forward_kl, generalized_jsd, log_probs
from kd.objectives.dual_space import DualSpace, DualSpaceAttention
from kd.types import Head, Shape, Spans
from tests.objectives.cases import draw


def made(kind, width: int, other: int, **settings):
    term = kind(**settings)
    torch.manual_seed(0)
    term.sized_for(Shape(width, 2), Shape(other, 2))
    return term.double()


def eye(term):
    for layer in (term.to_student, term.to_teacher):
        nn.init.eye_(layer.weight)
    return term


def grid(mask) -> dict:
    """Signals over B x T with widths 4 and 6, vocabularies 9 and 11, one tokenizer's positions."""
    batch, length = mask.shape
    student, teacher = draw(batch, length, 4), draw(batch, length, 6, seed=1)
    rows = torch.arange(int(mask.sum()))
    return {
        "student_hidden": (student * 0, student),
        "native_teacher_hidden": (teacher * 0, teacher),
        "student_head": Head(draw(9, 4, seed=2)),
        "native_teacher_head": Head(draw(11, 6, seed=3), bias=draw(11, seed=4), soft_cap=3.0),
        "labels": torch.randint(0, 9, mask.shape, generator=torch.Generator().manual_seed(0)),
        "mask": mask,
        "teacher_mask": mask,
        "spans": Spans(rows, rows + 1, rows, rows + 1, mask.nonzero()[:, 0]),
    }


MASK = torch.tensor([[False, True, True, True], [True, True, False, False]])


def test_two_equal_models_and_projections_that_do_nothing():
    """p^ = q and q^ = p: both divergences are 0, the cross-entropy of the teacher's words is the student's."""
    hidden, head = draw(2, 4, 4), Head(draw(9, 4, seed=2))
    signals = grid(MASK) | {"student_hidden": (hidden,), "native_teacher_hidden": (hidden,)}
    signals |= {"student_head": head, "native_teacher_head": head}
    values = eye(made(DualSpace, 4, 4))(**signals)
    logprobs = log_probs(hidden @ head.weight.T).gather(-1, signals["labels"][..., None])[..., 0]
    torch.testing.assert_close(values, torch.where(MASK, -logprobs, 0.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", [forward_kl, generalized_jsd])
def test_the_formula(divergence):
    signals, term = grid(MASK), made(DualSpace, 4, 6, divergence=divergence, temperature=2.0)
    h, g = signals["student_hidden"][1], signals["native_teacher_hidden"][1]
    ours, theirs = signals["student_head"], signals["native_teacher_head"]

    def teachers(states):
        return 3.0 * torch.tanh((states @ theirs.weight.T + theirs.bias) / 3.0)

    p_hat = (g @ term.to_student.weight.T) @ ours.weight.T
    q_hat = teachers(h @ term.to_teacher.weight.T)
    expected = divergence(h @ ours.weight.T, p_hat, temperature=2.0)
    expected = expected - p_hat.log_softmax(-1).gather(-1, signals["labels"][..., None])[..., 0]
    expected = expected + forward_kl(q_hat, teachers(g), temperature=2.0)
    torch.testing.assert_close(term(**signals), torch.where(MASK, expected, 0.0))


def test_who_learns_what():
    """The divergence in the student's space moves the student only, and nothing moves a head towards p^."""
    signals, term = grid(MASK), made(DualSpace, 4, 6)
    h = signals["student_hidden"][1].requires_grad_()
    weights = [signals[f"{role}_head"].weight.requires_grad_() for role in ("student", "native_teacher")]
    rows = h[MASK], term.to_student(signals["native_teacher_hidden"][1][MASK])
    labels = signals["labels"][MASK]

    def moved(values, *inputs):
        return [
            g is not None and bool(g.abs().max() > 0)
            for g in torch.autograd.grad(values.sum(), inputs, allow_unused=True, retain_graph=True)
        ]

    everything = term.in_student_space(*rows, signals["student_head"], labels)
    entropy = -log_probs(rows[1] @ weights[0].T).gather(1, labels[:, None])[:, 0]
    projection, _ = term.to_student.weight, term.to_teacher.weight
    got = torch.autograd.grad(everything.sum(), projection, retain_graph=True)[0]
    wanted = torch.autograd.grad(entropy.sum(), projection, retain_graph=True)[0]
    torch.testing.assert_close(got, wanted)  # P learns from the labels alone
    frozen = forward_kl(h[MASK] @ weights[0].T, rows[1].detach() @ weights[0].detach().T, temperature=2.0)
    got, wanted = (torch.autograd.grad(v.sum(), weights[0], retain_graph=True)[0] for v in (everything, frozen))
    torch.testing.assert_close(got, wanted)  # the student's head moves by q alone
    assert moved(term(**signals), h, weights[0], *term.parameters()) == [True] * 4


def test_only_where_the_projected_teacher_is_right():
    signals = grid(MASK)
    term, always = (made(DualSpace, 4, 6, only_correct=only) for only in (True, False))
    p_hat = term.to_student(signals["native_teacher_hidden"][1]) @ signals["student_head"].weight.T
    labels = p_hat.argmax(-1)
    labels[0, 1] = (labels[0, 1] + 1) % 9  # wrong in one place
    signals["labels"] = labels
    difference = (always(**signals) - term(**signals)).abs() > 1e-9
    assert difference.nonzero().tolist() == [[0, 1]]


def test_rows_that_are_no_exact_match_are_nothing():
    signals, term = grid(MASK), made(DualSpace, 4, 6)
    whole = term(**signals)
    # rows 0 | 1 2 beside 0 1 | 2, then 3 beside 3: only the last is one token beside one
    table = torch.tensor([[0, 1, 0, 2, 0], [1, 3, 2, 3, 0], [3, 4, 3, 4, 1]])
    values = term(**signals | {"spans": Spans(*table.unbind(1))})
    assert values[0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(values[1, 0], whole[1, 0])
    assert values[1, 1] == 0


# ---- projections that begin with what the heads say -----------------------------------------------------------------


def mirrored(rows: int = 5) -> tuple[dict, torch.Tensor]:
    """Two models of one width and one vocabulary under other ids; each head is the other's by an invertible map.

    The second value is the student's id of each of the teacher's.
    """
    ids = torch.tensor([3, 0, 8, 1, 7, 2, 6, 4, 5])
    theirs = Head(draw(9, 4, seed=2), scale=0.5)
    ours = torch.empty(9, 4, dtype=torch.float64).index_copy(0, ids, theirs.weight @ draw(4, 4, seed=3))
    mask = torch.ones(1, rows, dtype=torch.bool)
    signals = grid(mask) | {"student_head": Head(ours), "native_teacher_head": theirs}
    signals["native_teacher_hidden"] = (draw(1, rows, 4, seed=6),)
    return signals, ids


def begun(signals: dict, ids: torch.Tensor, **settings):
    term = made(DualSpace, 4, 4, start="pseudo_inverse", **settings)
    term.begins_with(signals["student_head"], signals["native_teacher_head"], (ids, torch.arange(9)))
    return term


def said(signals: dict, who: str) -> torch.Tensor:
    head = signals[f"{who}_head"]
    return head.scale * signals[f"{who}_hidden"][-1] @ head.weight.T


def test_each_models_states_have_the_same_distribution_in_both_spaces():
    """p^ = p and q^ = q, under the other's ids: the two divergences are both D(p, q), at the start."""
    signals, ids = mirrored()
    term = begun(signals, ids)
    p, q = said(signals, "native_teacher"), said(signals, "student")[..., ids]
    inverse = ids.argsort()
    logprobs = log_probs(p[..., inverse]).gather(-1, signals["labels"][..., None])[..., 0]
    expected = 2 * forward_kl(q, p, temperature=2.0) - logprobs
    torch.testing.assert_close(term(**signals), expected, rtol=1e-6, atol=1e-6)


def test_a_student_equal_to_the_teacher_is_at_no_distance():
    signals, ids = mirrored()
    term = begun(signals, ids)
    signals["student_hidden"] = (signals["native_teacher_hidden"][-1] @ term.to_student.weight.T,)
    p = said(signals, "native_teacher")
    torch.testing.assert_close(said(signals, "student")[..., ids].softmax(-1), p.softmax(-1), rtol=1e-6, atol=1e-6)
    logprobs = log_probs(p[..., ids.argsort()]).gather(-1, signals["labels"][..., None])[..., 0]
    torch.testing.assert_close(term(**signals), -logprobs, rtol=1e-6, atol=1e-6)
    term(**signals).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in (term.to_student.weight,))  # by the labels
    torch.testing.assert_close(term.to_teacher.weight.grad, torch.zeros(4, 4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_only_one_start_looks_at_heads():
    assert not made(DualSpace, 4, 4).begins_with_heads
    assert made(DualSpace, 4, 4, start="pseudo_inverse").begins_with_heads


def test_only_ids_that_both_know_are_fitted():
    signals, ids = mirrored()
    whole = begun(signals, ids)
    head = signals["student_head"]
    head.weight[ids[-2:]] = 99.0  # the student's two ids that no teacher's id stands for
    term = made(DualSpace, 4, 4, start="pseudo_inverse")
    term.begins_with(head, signals["native_teacher_head"], (ids[:-2], torch.arange(7)))
    for a, b in zip(whole.parameters(), term.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# ---- cross-model attention ------------------------------------------------------------------------------------------


def attended(mask, teacher_mask, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    signals = grid(mask)
    signals.pop("spans")
    signals["native_teacher_hidden"] = (draw(*teacher_mask.shape, 6, seed=7),)
    signals["teacher_mask"] = teacher_mask
    for role, sizes, shape in (("student", (9, 4), mask.shape), ("native_teacher", (11, 6), teacher_mask.shape)):
        signals[f"{role}_embeddings"] = draw(*sizes, seed=5)
        prefix = "" if role == "student" else "teacher_"
        for name in ("tokens", "labels"):
            signals[prefix + name] = torch.randint(0, sizes[0], shape, generator=generator)
    return signals


THEIRS = torch.tensor([[False, False, True, True, True], [True, False, False, False, False]])


def test_attention_by_hand():
    """One response at a time: weights, mixtures, both heads, and the teacher's rows spread over the student's."""
    signals, term = attended(MASK, THEIRS), made(DualSpaceAttention, 4, 6, only_correct=False)
    values = term(**signals)
    es, et = signals["student_embeddings"], signals["native_teacher_embeddings"]
    et = et / et.std()
    for b in range(2):
        m, t = MASK[b], THEIRS[b]
        query = torch.cat([es[signals["tokens"][b, m]], es[signals["labels"][b, m]]], -1) @ term.to_query.weight.T
        key = torch.cat([et[signals["teacher_tokens"][b, t]], et[signals["teacher_labels"][b, t]]], -1)
        weights = query @ key.T / math.sqrt(12)
        h, g = signals["student_hidden"][1][b, m], signals["native_teacher_hidden"][0][b, t]
        answers = (g / g.std() + et[signals["teacher_labels"][b, t]]) @ term.to_student.weight.T
        ours = term.in_student_space(h, weights.softmax(1) @ answers, signals["student_head"], signals["labels"][b, m])
        back = weights.softmax(0).T @ (h @ term.to_teacher.weight.T)
        theirs = term.in_teacher_space(back, g, signals["native_teacher_head"])
        torch.testing.assert_close(values[b, m], ours + theirs.sum() / m.sum(), rtol=1e-6, atol=1e-6)
    assert (values[~MASK] == 0).all()


def test_neighbours_and_padding_change_nothing():
    signals, term = attended(MASK, THEIRS), made(DualSpaceAttention, 4, 6)
    whole = term(**signals)
    shared = ("embeddings", "head")

    def one(value, b, name):
        if name.endswith(shared):
            return value
        value = (value[-1],) if isinstance(value, tuple) else value
        pad = 3 if b else 0
        if isinstance(value, tuple):
            return (nn.functional.pad(value[0][b : b + 1], (0, 0, 0, pad), value=9.0),)
        return nn.functional.pad(value[b : b + 1], (0, pad))

    for b in range(2):
        alone = term(**{name: one(value, b, name) for name, value in signals.items()})
        torch.testing.assert_close(alone[0, :4], whole[b], rtol=1e-6, atol=1e-7)
        assert (alone[0, 4:] == 0).all()


def test_a_response_that_the_teacher_does_not_have_is_finite():
    signals, term = attended(MASK, THEIRS & torch.tensor([[True], [False]])), made(DualSpaceAttention, 4, 6)
    assert term(**signals).isfinite().all()


def test_projections_are_the_terms_own():
    term = made(DualSpaceAttention, 4, 6)
    assert {name: tuple(p.shape) for name, p in term.named_parameters()} == {
        "to_student.weight": (4, 6),
        "to_teacher.weight": (6, 4),
        "to_query.weight": (12, 8),
    }
    signals = attended(MASK, THEIRS)
    for role in ("student", "native_teacher"):
        signals[f"{role}_embeddings"].requires_grad_()
    term(**signals).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in term.parameters())
    assert signals["student_embeddings"].grad is None
