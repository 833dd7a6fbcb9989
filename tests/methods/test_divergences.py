"""What a method learns at one position, on three ids, against its nearest neighbour; every number worked out here.

p = (.7, .2, .1) is the teacher, q = (.4, .4, .2) the student, unless said otherwise.
Run: python -m pytest tests/methods
"""

from math import log

import pytest
import torch

from kd.objectives.divergence import forward_kl
from kd.objectives.reduction import Counts, reduce
from kd.teachers.ensemble import Ensemble
from kd.teachers.white_box import WhiteBox
from kd.types import Head, Pairs, Shape, Spans
from tests.methods.points import STUDENT, TEACHER, P, Q, at, encoder, on_three_ids, point, term, weight
from tests.objectives.cases import logits_of
from tests.tiny import records, tiny

FORWARD = 0.7 * log(0.7 / 0.4) + 0.2 * log(0.2 / 0.4) + 0.1 * log(0.1 / 0.2)  # KL(p || q)
REVERSE = 0.4 * log(0.4 / 0.7) + 0.4 * log(0.4 / 0.2) + 0.2 * log(0.2 / 0.1)  # KL(q || p)
HERE = torch.tensor([0])
ALONE = Spans(HERE, HERE + 1, HERE, HERE + 1, HERE)


def kl(a, b) -> float:
    return sum(x * log(x / y) for x, y in zip(a, b, strict=True))


def mixed(share: float, a, b) -> list[float]:
    """share a + (1 - share) b."""
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def test_sft_reads_the_label_alone():
    assert term("sft", "sft")(torch.tensor([log(0.4)])).item() == pytest.approx(-log(0.4))


@pytest.mark.parametrize("method", ["kd", "imitkd", "skd"])
def test_kd_is_forward_kl_on_all_responses(method):
    assert on_three_ids(method, "fkl") == pytest.approx(FORWARD)


def test_gkds_beta_weighs_the_teacher_in_the_mixture():
    # beta = 1/2: m = (.55, .3, .15) and half of each divergence; it is the same from either side
    half = 0.5 * kl(P, (0.55, 0.3, 0.15)) + 0.5 * kl(Q, (0.55, 0.3, 0.15))
    assert on_three_ids("gkd", "jsd") == pytest.approx(half)
    # beta = .1: m = .1 p + .9 q = (.43, .38, .19), near the student, and .1 KL(p || m) + .9 KL(q || m)
    tenth = 0.1 * kl(P, (0.43, 0.38, 0.19)) + 0.9 * kl(Q, (0.43, 0.38, 0.19))
    assert on_three_ids("gkd", "jsd", "objective.jsd.loss.beta=0.1") == pytest.approx(tenth)


@pytest.mark.parametrize("method", ["gkd", "skd", "distillm2", "fdistill"])
def test_the_mean_of_each_response_comes_first(method):
    # Responses of one token and of three, values 6 and 1, 2, 3: (6 + 2)/2 = 4, and not 12/4 = 3.
    mask = torch.tensor([[True, False, False], [True, True, True]])
    values = torch.tensor([6.0, 1.0, 2.0, 3.0])
    found = reduce(values, mask, Counts(4.0, 2.0, 2.0), domain="*n", reduction=point(method).reduction)
    assert found.item() == pytest.approx(4.0)


def test_distillms_mixture_holds_a_tenth_of_the_student():
    # m = .9 p + .1 q = (.67, .22, .11)
    assert on_three_ids("distillm", "skew_rkl") == pytest.approx(kl(Q, (0.67, 0.22, 0.11)))
    assert on_three_ids("distillm", "skew_rkl") < REVERSE
    assert weight("distillm", "distillm_lm") == 1.0


@pytest.mark.parametrize(("step", "beta"), [(0, 1.0), (2, 1.25), (4, 1.5), (8, 1.5)])
def test_distillm2_reads_which_model_generated_and_lets_the_students_side_grow(step, beta):
    # of 8 steps beta goes from 1 to 1.5 over the first 4
    teachers = (2 - beta) * kl(P, mixed(0.1, P, Q))  # KL(p || .1 p + .9 q)
    students = beta * kl(Q, mixed(0.1, Q, P))  # KL(q || .1 q + .9 p)
    for writer, expected in ((TEACHER, teachers), (STUDENT, students)):
        signals = {"written_by": writer, "progress": at(step, 8)}
        assert on_three_ids("distillm2", "distillm2", **signals) == pytest.approx(expected)


def test_fdistills_halves():
    # m = (.55, .3, .15): a token of each side, 1/2 KL(p || m) + 1/2 KL(q || m)
    sides = [on_three_ids("fdistill", "fdistill_js", written_by=writer) for writer in (TEACHER, STUDENT)]
    m = (0.55, 0.3, 0.15)
    assert sides == pytest.approx([kl(P, m), kl(Q, m)])
    values, mask = torch.tensor(sides), torch.ones(2, 1, dtype=torch.bool)
    mean = reduce(values, mask, Counts(2.0, 2.0, 1.0), domain="*n", reduction=point("fdistill").reduction)
    assert mean.item() == pytest.approx(0.5 * kl(P, m) + 0.5 * kl(Q, m))


def test_fdistills_halves_stay_halves_where_one_sides_text_is_longer():
    # one token of the teacher's text, three of the student's
    written_by = torch.cat([TEACHER, STUDENT, STUDENT, STUDENT])
    values = term("fdistill", "fdistill_js")(logits_of(*[Q] * 4), logits_of(*[P] * 4), written_by=written_by)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    mean = reduce(values, mask, Counts(4.0, 2.0, 1.0), domain="*n", reduction=point("fdistill").reduction)
    m = (0.55, 0.3, 0.15)
    assert mean.item() == pytest.approx(0.5 * kl(P, m) + 0.5 * kl(Q, m))


def test_abkds_point_of_the_family():
    # -1/(.2 * .7) sum [p^.2 q^.7 - (.2 p^.9 + .7 q^.9)/.9]
    expected = -sum(p**0.2 * q**0.7 - (0.2 * p**0.9 + 0.7 * q**0.9) / 0.9 for p, q in zip(P, Q, strict=True)) / 0.14
    assert on_three_ids("abkd", "ab") == pytest.approx(expected)


def test_akl_weighs_by_the_gaps_on_head_and_tail():
    # q = (.6, .1, .3): the head is the first id, which holds half of p's mass. Gaps .1, and .1 + .2 = .3 on the tail:
    # a quarter of forward KL and three quarters of reverse KL.
    q = (0.6, 0.1, 0.3)
    assert on_three_ids("akl", "akl", q=q) == pytest.approx(0.25 * kl(P, q) + 0.75 * kl(q, P))


def test_taids_target_is_on_the_way():
    # t = .4: proportional to q^.6 p^.4; after 5 of 10 steps t = .4 + .6 * .5 = .7 at least
    def target(t):
        raw = [q ** (1 - t) * p**t for p, q in zip(P, Q, strict=True)]
        return [x / sum(raw) for x in raw]

    loss = term("taid", "taid")
    assert loss(logits_of(Q), logits_of(P)).item() == pytest.approx(kl(target(0.4), Q), rel=1e-5)
    loss.after_step(1.0, at(5))
    assert loss.t.item() == pytest.approx(0.7)
    assert loss(logits_of(Q), logits_of(P)).item() == pytest.approx(kl(target(0.7), Q), rel=1e-5)
    # t may step faster than the line while the loss falls from 1 to 1/2: m = .01 * .5, 5e-4 sigma(m) (1 - t) more
    before = loss.t.item()
    loss.after_step(0.5, at(0))
    momentum = 0.01 * 0.5
    assert loss.t.item() - before == pytest.approx(5e-4 / (1 + 2.718281828**-momentum) * 0.3, rel=1e-3)


def test_dskd_compares_in_both_spaces():
    """Two-dimensional states, heads of three ids, projections that do nothing: KL in both spaces and the labels'."""
    loss = term("dskd", "dskd")
    loss.sized_for(Shape(2, 1), Shape(2, 1))
    for layer in (loss.to_student, loss.to_teacher):
        torch.nn.init.eye_(layer.weight)
    h, g = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # says (1, 0, 1) of h and (0, 2, 2) of g
    theirs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # says (2, 0, 0) of h and (0, 4, 0) of g
    yes = torch.ones(1, 1, dtype=torch.bool)
    found = loss((h,), (g,), Head(ours), Head(theirs), torch.tensor([[1]]), yes, yes, ALONE)

    def said(*z, temperature=2.0):
        return torch.tensor([x / temperature for x in z]).softmax(-1).tolist()

    in_students = kl(said(0, 2, 2), said(1, 0, 1))  # KL(p^ || q), both heated to 2
    in_teachers = kl(said(0, 4, 0), said(2, 0, 0))  # KL(p || q^)
    learnt = -log(said(0, 2, 2, temperature=1.0)[1])  # the projection learns the label, at temperature 1
    assert found.item() == pytest.approx(in_students + in_teachers + learnt, rel=1e-5)
    assert point("dskd").objective.dskd.lr == 1e-3


def test_uld_sorts():
    # (.1, .2, .7) sorts as p does: no distance. (.4, .4, .2): |.7 - .4| + |.2 - .4| + |.1 - .2| = .6
    loss, pairs = term("uld", "uld"), Pairs(HERE, HERE, HERE, ends=torch.tensor([False]))
    assert loss(logits_of((0.1, 0.2, 0.7)), logits_of(P), pairs).item() == pytest.approx(0.0, abs=1e-7)
    assert loss(logits_of(Q), logits_of(P), pairs).item() == pytest.approx(0.6)
    assert loss(logits_of(Q), logits_of(P), pairs._replace(ends=torch.tensor([True]))).item() == 0  # the end token
    assert (weight("uld", "uld"), weight("uld", "sft")) == (1.5, 1.0)


def test_gold_keeps_what_is_shared_and_sorts_the_rest():
    """Id 0 is shared, a third of all; the others are told by size alone. Both models are heated to 0.9 first."""
    p, q = ([x ** (1 / 0.9) / sum(y ** (1 / 0.9) for y in side) for x in side] for side in (P, Q))
    shared = torch.tensor([0, -1, -1])
    found = term("gold", "gold")(logits_of(Q), logits_of(P), HERE, HERE, ALONE, shared)
    m = 0.5 * (p[0] + q[0])
    matched = 0.5 * p[0] * log(p[0] / m) + 0.5 * q[0] * log(q[0] / m)
    unmatched = abs(p[1] - q[1]) + abs(p[2] - q[2])  # both are sorted as they stand
    assert found.item() == pytest.approx(matched / 3 + 2 * unmatched / 3)


def test_sdft_is_jsd_on_all_ids():
    m = (0.55, 0.3, 0.15)
    assert on_three_ids("sdft", "jsd") == pytest.approx(0.5 * kl(P, m) + 0.5 * kl(Q, m))


def test_babyllama_learns_the_mean_of_logits_heated_and_squared():
    # Teachers' logits (2, 0, 0) and (0, 2, 0), mean (1, 1, 0); the student's are 0. Heated to 2 it is
    # softmax(.5, .5, 0) against (1/3, 1/3, 1/3), times 2^2, times the weight of a half.
    mean = (torch.tensor([[2.0, 0.0, 0.0]]) + torch.tensor([[0.0, 2.0, 0.0]])) / 2
    e = 2.718281828459045**0.5
    heated = [e / (2 * e + 1), e / (2 * e + 1), 1 / (2 * e + 1)]
    found = term("babyllama", "fkl")(torch.zeros(1, 3), mean)
    assert found.item() == pytest.approx(4 * kl(heated, [1 / 3] * 3), rel=1e-5)
    assert (weight("babyllama", "fkl"), weight("babyllama", "sft")) == (0.5, 0.5)


def test_babyllamas_teachers_are_combined_by_their_logits():
    parts = [WhiteBox(tiny(seed)) for seed in (1, 2)]
    both = Ensemble(members=dict(zip("ab", parts, strict=True)), combine=point("babyllama").teacher.combine)
    [batch] = encoder(tiny()).batches(records(1))
    wanted = frozenset({"logits"})
    rows = [model(batch.student, wanted).logits.rows(slice(0, 3)) for model in (*parts, both)]
    mean = (rows[0] + rows[1]) / 2
    torch.testing.assert_close(rows[2].softmax(-1), mean.softmax(-1))
    assert forward_kl(rows[2], (rows[0].softmax(-1) + rows[1].softmax(-1)).log()).max() > 1e-3  # no mixture
