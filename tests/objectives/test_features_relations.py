"""Attention, MiniLM's relations, relational KD and what teaches layer by layer."""

import math

import pytest
import torch
from torch import Tensor

from kd.data.sequences import Encoded, collate
from kd.experiment.build import build
from kd.objectives.layerwise import TaskAwareFilters, TinyBERT
from kd.objectives.relations import attention_kl, minilm, minilm2, rkd
from kd.signals import is_row_wise
from kd.teachers.white_box import WhiteBox
from kd.types import Head, Progress, Shape
from tests.runs import config
from tests.tiny import tiny

MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
LATER, MIDDLE = Progress(9, 10), Progress(0, 10)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(heads: int = 2, width: int = 3, layers: int = 2, seed: int = 0) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    x = draw(layers, 3, 2, heads, 5, width, seed=seed)
    return tuple((x[i, 0], x[i, 1], x[i, 2]) for i in range(layers))


def rotation(width: int, seed: int = 3) -> Tensor:
    return torch.linalg.qr(draw(width, width, seed=seed))[0]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def distribution(x: Tensor, y: Tensor, t: int) -> Tensor:
    """What `[h T d]` vectors at t are to those up to t."""
    return torch.einsum("hd,hjd->hj", x[:, t], y[:, : t + 1]).div(x.shape[-1] ** 0.5).softmax(-1)


# --- MiniLM ---


def test_minilm_by_hand():
    student, teacher = qkv(width=3), qkv(width=4, seed=1)
    values = minilm(student, teacher, MASK, REAL)
    for b, t in MASK.nonzero().tolist():
        (q, k, v), (tq, tk, tv) = ([x[b] for x in layers[-1]] for layers in (student, teacher))
        attention = kl(distribution(tq, tk, t), distribution(q, k, t)).mean()
        relation = kl(distribution(tv, tv, t), distribution(v, v, t)).mean()
        torch.testing.assert_close(values[b, t], attention + relation)


def test_two_tokens_by_hand():
    """One head of width 1: token 1 sees scores (0, ln 3) in the teacher and (0, 0) in the student."""
    one = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    key = torch.tensor([0.0, math.log(3)], dtype=torch.float64)[None, None, :, None]
    yes = torch.ones(1, 2, dtype=torch.bool)
    values = minilm(((one, 0 * one, one),), ((one, key, one),), yes, yes)
    # KL((1/4, 3/4) || (1/2, 1/2)) = 1/4 ln 1/2 + 3/4 ln 3/2; values are all equal; token 0 sees itself alone
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(values, torch.tensor([[0.0, expected]], dtype=torch.float64))


def test_minilm_needs_as_many_heads():
    with pytest.raises(ValueError, match="the student has 2 attention heads and the teacher 3; take objective=minilm2"):
        minilm(qkv(2), qkv(3), MASK, REAL)


def test_minilm2_by_hand():
    """Two relation heads out of three attention heads of 4, against three of 2: joined, then cut."""
    student, teacher = qkv(3, 2), qkv(3, 4, layers=3, seed=1)
    values = minilm2(student, teacher, MASK, REAL, relation_heads=2, teacher_layer=2)
    for b, t in MASK.nonzero().tolist():
        total = 0.0
        for mine, theirs in zip(student[-1], teacher[1], strict=True):
            cut = [x[b].transpose(0, 1).reshape(5, 2, -1).transpose(0, 1) for x in (mine, theirs)]
            total += kl(distribution(cut[1], cut[1], t), distribution(cut[0], cut[0], t)).mean()
        torch.testing.assert_close(values[b, t], total)


def test_minilm2_has_no_axes():
    student, teacher = qkv(2, 4), qkv(2, 4, seed=1)
    turned = tuple(tuple(x @ rotation(4) for x in layer) for layer in student)
    given = minilm2(student, teacher, MASK, REAL, relation_heads=2)
    torch.testing.assert_close(minilm2(turned, teacher, MASK, REAL, relation_heads=2), given)
    longer = tuple(tuple(2 * x for x in layer) for layer in student)
    assert (minilm2(longer, teacher, MASK, REAL, relation_heads=2) - given).abs().max() > 0.1


def test_relation_heads_have_to_divide_both_widths():
    with pytest.raises(ValueError, match="relation_heads=4 does not divide the 6 of the student's joined heads"):
        minilm2(qkv(2, 3), qkv(2, 4), MASK, REAL, relation_heads=4)
    with pytest.raises(ValueError, match="teacher_layer=3 is not there: the teacher has 2"):
        minilm2(qkv(2, 4), qkv(2, 4), MASK, REAL, relation_heads=4, teacher_layer=3)


@pytest.mark.parametrize("loss", [minilm, lambda *a: minilm2(*a, relation_heads=3)])
def test_relations_are_zero_at_equality_and_their_gradients_finite_differences(loss):
    same = qkv()
    leaf = same[-1][0].clone().requires_grad_()
    values = loss(((leaf, *same[-1][1:]),), same, MASK, REAL)
    assert values.abs().max() < 1e-14
    assert torch.autograd.grad(values.sum(), leaf)[0].abs().max() < 1e-14
    leaves = tuple(x.clone().requires_grad_() for x in qkv(seed=1)[-1])
    assert torch.autograd.gradcheck(lambda *x: loss((x,), same, MASK, REAL), leaves, fast_mode=True)


def test_all_positions_are_the_mean_over_tokens():
    student, teacher = qkv(), qkv(seed=1)
    each = minilm(student, teacher, REAL, REAL)
    values = minilm(student, teacher, MASK, REAL, positions="all")
    for b in range(2):
        torch.testing.assert_close(values[b], each[b][REAL[b]].mean().expand(5))


# --- attention ---


def test_attention_kl_by_hand():
    teacher = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)[None, None]
    student = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)[None, None].requires_grad_()
    yes = torch.ones(1, 2, dtype=torch.bool)
    values = attention_kl((student,), (teacher,), yes, yes)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(values.detach(), torch.tensor([[0.0, expected]], dtype=torch.float64))
    assert torch.autograd.grad(values.sum(), student)[0].isfinite().all()


def test_attention_kl_follows_the_map_of_layers():
    student = tuple(draw(2, 2, 5, 5, seed=s).tril().softmax(-1) for s in range(2))
    teacher = tuple(draw(2, 2, 5, 5, seed=s).tril().softmax(-1) for s in range(4, 8))
    both = attention_kl(student, teacher, MASK, REAL)  # 1 -> 2, 2 -> 4
    each = [attention_kl(student, teacher, MASK, REAL, layers=[pair]) for pair in ([1, 2], [2, 4])]
    torch.testing.assert_close(both, each[0] + each[1])
    expected = kl(teacher[1], student[0]).mean(1)
    torch.testing.assert_close(each[0][MASK], expected[MASK])


# --- models that cannot be compared ---


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective=minilm"], "the student has 2 attention heads and the teacher 4; take objective=minilm2"),
        (["objective=attention_kl"], "the student has 2 attention heads and the teacher 4; take objective=minilm2"),
        (["objective=tinybert"], "the student has 2 attention heads and the teacher 4; take objective=minilm2"),
        (["objective=minilm2"], "relation_heads=16 does not divide the 8 of the student's joined heads"),
        (
            ["objective=minilm2", "objective.minilm2.loss.relation_heads=8", "objective.minilm2.loss.teacher_layer=2"],
            "teacher_layer=2 is not there: the teacher has 1; set at most 1",
        ),
        (["objective=rkd", "objective.rkd.loss.layers=[[1,2]]"], r"the teacher has no layer 2; it has 0"),
        (["objective=attention_kl", "objective.attention_kl.loss.layers=[[0,1]]"], "names layer 0, the embeddings"),
    ],
)
def test_models_that_do_not_fit_are_refused_when_the_run_is_built(overrides, sentence):
    """A teacher of 4 heads of 4, a student of 2 heads of 4; both of one block. Nothing was trained yet."""
    heads = {"teacher": (4, 16), "student": (2, 8)}
    words = [
        f"{role}.model.architecture.{name}={value}"
        for role, (count, width) in heads.items()
        for name, value in (("num_attention_heads", count), ("hidden_size", width))
    ]
    with pytest.raises(ValueError, match=sentence):
        build(config(*words, "compare=null", *overrides))


def test_what_fits_is_built():
    words = ["student.model.architecture.num_attention_heads=4", "student.model.architecture.hidden_size=32"]
    build(config(*words, "objective=minilm2", "objective.minilm2.loss.relation_heads=8"))


# --- relational KD ---


def tokens(points: list[list[float]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    x = torch.tensor([points], dtype=torch.float64)
    return (0 * x, x), torch.ones(1, len(points), dtype=torch.bool)


def test_rkd_distances_by_hand():
    student, yes = tokens([[0.0], [1.0], [2.0]])  # distances 1, 2, 1; their mean 4/3
    teacher, _ = tokens([[0.0], [1.0], [5.0]])  # 1, 5, 4; 10/3
    value = rkd(student, teacher, yes, angle=0.0)
    apart = [3 / 4 - 3 / 10, 6 / 4 - 15 / 10, 3 / 4 - 12 / 10]
    assert value.item() == pytest.approx(sum(x * x / 2 for x in apart) / 3)


def test_rkd_angles_by_hand():
    student, yes = tokens([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # right isosceles: cosines 0, 1/sqrt 2, 1/sqrt 2
    teacher, _ = tokens([[0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)]])  # equilateral: 1/2 each
    value = rkd(student, teacher, yes, distance=0.0, angle=3.0)
    apart = [0.5, math.sqrt(0.5) - 0.5, math.sqrt(0.5) - 0.5]
    assert value.item() == pytest.approx(3 * sum(x * x / 2 for x in apart) / 3)


@pytest.mark.parametrize("level", ["token", "response"])
def test_rkd_has_no_scale_axes_or_origin(level):
    h, g = ((draw(3, 6, 4, seed=s),) * 2 for s in (0, 1))
    mask = torch.ones(3, 6, dtype=torch.bool)
    given = rkd(h, g, mask, level=level)
    moved = tuple(5 * x @ rotation(4) + 2 for x in h)
    torch.testing.assert_close(rkd(moved, g, mask, level=level), given)
    assert rkd(moved, h, mask, level=level).abs().max() < 1e-14
    assert given.min() > 1e-3


@pytest.mark.parametrize("level", ["token", "response"])
def test_rkd_gradients_are_finite_differences(level):
    g, mask = (draw(3, 6, 5, seed=1),) * 2, torch.ones(3, 6, dtype=torch.bool)
    h = draw(3, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rkd((0 * x, x), g, mask, level=level, items=4), (h,))


def test_rkd_where_there_is_little_to_relate():
    h, g = (draw(3, 6, 4),) * 2, (draw(3, 6, 4, seed=1),) * 2
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 0] = mask[1, :2] = True
    leaf = h[1].clone().requires_grad_()
    values = rkd((h[0], leaf), g, mask)
    assert values.tolist() == [0, 0, 0]  # none, one, or two tokens: one distance over its own mean
    assert torch.autograd.grad(values.sum(), leaf)[0].isfinite().all()
    alike = torch.ones(3, 6, 4, dtype=torch.float64).requires_grad_()
    values = rkd((alike, alike), g, ~mask)
    assert torch.autograd.grad(values.sum(), alike)[0].isfinite().all()
    response = rkd(h, g, mask, level="response")
    assert response.shape == (3,)
    assert rkd(h, g, torch.zeros_like(mask), level="response").tolist() == [0, 0, 0]


def test_rkd_relates_no_more_positions_than_set():
    h, g = (draw(1, 50, 4),) * 2, (draw(1, 50, 4, seed=1),) * 2
    mask = torch.ones(1, 50, dtype=torch.bool)
    kept = torch.tensor([0, 16, 32, 49])  # i 49 // 3
    few = rkd(tuple(x[:, kept] for x in h), tuple(x[:, kept] for x in g), mask[:, kept])
    torch.testing.assert_close(rkd(h, g, mask, items=4), few)


# --- layer by layer ---


def sized(term, student: int, teacher: int):
    torch.manual_seed(0)
    term.sized_for(Shape(student, 2), Shape(teacher, 2))
    return term.double()


def hidden(width: int, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(draw(2, 5, width, seed=10 * seed + i) for i in range(3))


def test_tinybert_by_hand():
    term = sized(TinyBERT(), 4, 6)
    h, g, s, t = hidden(4), hidden(6, 1), qkv(), qkv(width=5, seed=1)
    values = term(h, g, s, t, MASK, REAL)
    weights = [p for _, p in term.named_parameters()]
    assert [tuple(w.shape) for w in weights] == [(6, 4)] * 3  # embeddings and two layers
    for b, i in MASK.nonzero().tolist():
        expected = sum((h[n][b, i] @ weights[n].T - g[n][b, i]).square().mean() for n in range(3))
        for n in range(2):
            ours, theirs = (
                torch.einsum("hd,hjd->hj", q[b, :, i], k[b, :, : i + 1]) / q.shape[-1] ** 0.5
                for q, k, _ in (s[n], t[n])
            )
            expected = expected + (ours - theirs).square().mean()
        torch.testing.assert_close(values[b, i], expected)


def test_tinybert_gradients_and_equality():
    term = sized(TinyBERT(projection="auto"), 4, 4)
    h, s = hidden(4), qkv()
    assert term(h, h, s, s, MASK, REAL).abs().max() < 1e-14
    leaf = s[1][0].clone().requires_grad_()
    other = qkv(seed=1)
    assert torch.autograd.gradcheck(lambda q: term(h, h, (s[0], (q, *s[1][1:])), other, MASK, REAL), (leaf,))
    with pytest.raises(ValueError, match="take objective=minilm2"):
        term(h, h, qkv(2), qkv(3), MASK, REAL)


def ted() -> tuple[TaskAwareFilters, dict]:
    given = {
        "student_hidden": tuple(x.requires_grad_() for x in hidden(4)),
        "teacher_hidden": hidden(6, 1),
        "teacher_head": Head(draw(7, 6, seed=5)),
        "labels": torch.arange(10).view(2, 5) % 7,
        "mask": MASK,
    }
    return sized(TaskAwareFilters(), 4, 6), given


def test_teds_filters_learn_the_task_first():
    term, given = ted()
    values = term(**given)
    head, labels = given["teacher_head"].weight, given["labels"][MASK]
    expected = 0.0
    for (s, t), down, up in zip(term.targets.pairs, term.targets.projections, term.filters, strict=True):
        for filtered in (down(given["student_hidden"][s]), up(given["teacher_hidden"][t])):
            expected = expected - (filtered[MASK] @ head.T).log_softmax(-1)[range(5), labels]
    torch.testing.assert_close(values[MASK], expected)
    values.sum().backward()
    assert all(h.grad is None or (h.grad == 0).all() for h in given["student_hidden"])
    assert all(p.grad.abs().max() > 0 for p in term.parameters())


def test_teds_student_learns_the_filtered_states_then():
    term, given = ted()
    term.after_step(0.0, LATER)
    values = term(**given)
    expected = sum(
        (down(given["student_hidden"][s]) - up(given["teacher_hidden"][t])).square().mean(-1)
        for (s, t), down, up in zip(term.targets.pairs, term.targets.projections, term.filters, strict=True)
    )
    torch.testing.assert_close(values[MASK], expected[MASK])
    values.sum().backward()
    assert given["student_hidden"][-1].grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in term.targets.parameters())
    assert all((p.grad == 0).all() for p in term.filters.parameters())  # the target stands, and DDP sees a gradient


@pytest.mark.parametrize(("total", "spent"), [(4, (0.25, 0.5)), (400, (0.25, 0.5))], ids=["steps", "budget"])
def test_teds_targets_stand_after_stage_one(total, spent):
    """An optimizer's momentum goes on moving filters whose gradient is zero."""
    term, given = ted()  # stage one is a quarter of the run
    with torch.no_grad():
        for weight in term.filters.parameters():
            weight.mul_(2)
    term.after_step(0.0, Progress(1, total, spent[0]))  # the last step of stage one has been made
    learnt = term(**given)
    with torch.no_grad():
        for weight in term.filters.parameters():
            weight.add_(1)
    term.after_step(0.0, Progress(2, total, spent[1]))
    assert torch.equal(term(**given), learnt)
    fresh, _ = ted()
    fresh.after_step(0.0, LATER)
    assert not torch.equal(fresh(**given), learnt)
    resumed, _ = ted()
    resumed.load_state_dict(term.state_dict())
    assert torch.equal(resumed(**given), learnt)


def test_ted_without_a_loss_row():
    term, given = ted()
    for _ in range(2):
        assert (term(**{**given, "mask": torch.zeros_like(MASK)}) == 0).all()
        term.after_step(0.0, LATER)


# --- under autocast ---


@pytest.mark.parametrize(
    "value",
    [
        lambda: minilm2(single(qkv()), single(qkv(seed=1)), MASK, REAL, relation_heads=2),
        lambda: rkd(single(hidden(4)), single(hidden(4, 1)), MASK),
        lambda: sized(TinyBERT(projection="none"), 4, 4)(
            student_hidden=single(hidden(4)),
            teacher_hidden=single(hidden(4, 1)),
            student_qkv=single(qkv()),
            teacher_qkv=single(qkv(seed=1)),
            mask=MASK,
            real=REAL,
        ),
    ],
    ids=["minilm2", "rkd", "tinybert"],
)
def test_autocast_takes_no_digits(value):
    """Terms are made of differences of products, which bfloat16 would drown."""
    with torch.autocast("cpu", torch.bfloat16):
        found = value()
    torch.testing.assert_close(found, value(), rtol=1e-6, atol=0)


def single(layers):
    """In float32."""
    return tuple(tuple(x.float() for x in y) if isinstance(y, tuple) else y.float() for y in layers)


def test_a_student_after_dropout_is_refused():
    """Its zeros would count 87 nats each, and teach nothing."""
    teacher = draw(2, 2, 5, 5).tril().masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    dropped = torch.nn.functional.dropout(teacher, 0.3)
    assert attention_kl((teacher,), (teacher,), MASK, REAL)[MASK].abs().max() < 1e-6
    with pytest.raises(ValueError, match="attention_dropout=0"):
        attention_kl((dropped,), (teacher,), MASK, REAL)


# --- of real models ---


def encoded(*lengths: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [Encoded(tuple(torch.randint(0, 256, (n,), generator=generator).tolist()), 3) for n in lengths]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["minilm", "minilm2", "attention_kl", "tinybert", "rkd"])
def test_padding_of_real_models_changes_nothing(name, family):
    ours, theirs = tiny(1, family=family), tiny(2, family=family)
    bert = sized(TinyBERT(), 32, 32)
    fields = {"rkd": {"hidden"}, "tinybert": {"hidden", "qkv"}, "attention_kl": {"attentions"}}.get(name, {"qkv"})
    seen = []
    for side, multiple in (("right", 1), ("right", 24), ("left", 24)):
        sequences = collate(encoded(9, 14, 6), 0, side, multiple)
        s, t = (model(sequences, frozenset(fields)) for model in (ours, theirs))
        mask, real = sequences.mask, sequences.real
        if name == "rkd":
            seen.append(rkd(s.hidden, t.hidden, mask))
        elif name == "tinybert":
            seen.append(bert(s.hidden, t.hidden, s.qkv, t.qkv, mask, real)[mask])
        elif name == "attention_kl":
            seen.append(attention_kl(s.attentions, t.attentions, mask, real)[mask])
        else:
            loss = {"minilm": minilm, "minilm2": minilm2}[name]
            seen.append(loss(s.qkv, t.qkv, mask, real)[mask])
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], atol=1e-5, rtol=1e-5)
    assert seen[0].abs().max() > 1e-3


def test_minilms_attention_is_the_models_own():
    """With values set equal, what is left is KL of the probabilities that the networks themselves give."""
    sequences = collate(encoded(9, 14, 6), 0)
    fields = frozenset({"qkv", "attentions"})
    s, t = (tiny(seed)(sequences, fields) for seed in (1, 2))
    flat = [(*out.qkv[-1][:2], torch.ones_like(out.qkv[-1][2])) for out in (s, t)]
    mask, real = sequences.mask, sequences.real
    mine = minilm((flat[0],), (flat[1],), mask, real)
    own = attention_kl(s.attentions, t.attentions, mask, real, layers="last")
    torch.testing.assert_close(mine[mask], own[mask], atol=1e-5, rtol=1e-4)


def test_a_student_learns_from_relations_through_its_network():
    student, sequences = tiny(1), collate(encoded(9, 14, 6), 0)
    theirs = WhiteBox(tiny(2))(sequences, frozenset({"qkv"})).qkv
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    series = []
    for _ in range(8):
        ours = student(sequences, frozenset({"qkv"})).qkv
        value = minilm2(ours, theirs, sequences.mask, sequences.real)[sequences.mask].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        series.append(value.item())
    assert series[-1] < 0.8 * series[0]


def test_relations_are_not_row_wise():
    assert not any(map(is_row_wise, (minilm, minilm2, attention_kl, rkd, TinyBERT(), TaskAwareFilters())))
