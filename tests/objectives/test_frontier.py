"""Objectives of on-policy distillation: the student's support, bounded entries, the teacher's entropy, drift.

Run: python -m pytest tests/objectives/test_frontier.py
"""

from functools import partial
from itertools import pairwise
from math import log

import pytest
import torch

from kd.objectives.clipped import clipped_jsd
from kd.objectives.divergence import forward_kl, generalized_jsd, reverse_kl
from kd.objectives.drift import opd_by_drift
from kd.objectives.gated import entropy_gated_kl
from kd.objectives.policy import opd
from kd.objectives.support import on_student_topk, opd_student_topk
from kd.signals import is_row_wise
from tests.objectives.cases import draw, gradient, logits_of

P, Q = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)  # teacher, student


def valued(loss, **settings):
    return lambda student, teacher: loss(student, teacher, **settings)[0]


# ---- the student's support -------------------------------------------------------------------------------------------


def test_the_likeliest_ids_of_the_student_and_the_rest_as_one_class():
    # S = {0, 1}: q = (.4, .3, rest .3), p = (.1, .2, rest .7). KL(q || p) = .4 log 4 + .3 log 1.5 + .3 log(3/7).
    values, metrics = on_student_topk(logits_of(Q), logits_of(P), divergence=reverse_kl, k=2)
    assert values.item() == pytest.approx(0.4 * log(4) + 0.3 * log(1.5) + 0.3 * log(3 / 7))
    assert metrics["teacher_mass"].item() == pytest.approx(0.3)
    assert metrics["student_mass"].item() == pytest.approx(0.7)
    assert metrics["overlap_ratio"].item() == 0.0  # the teacher's two are {2, 3}


def test_without_the_rest_both_are_divided_by_their_mass():
    # q~ = (4/7, 3/7), p~ = (1/3, 2/3): KL = 4/7 log(12/7) + 3/7 log(9/14).
    values, _ = on_student_topk(logits_of(Q), logits_of(P), divergence=reverse_kl, k=2, tail="renormalise")
    assert values.item() == pytest.approx(4 / 7 * log(12 / 7) + 3 / 7 * log(9 / 14))


def test_overlap_is_the_share_that_the_teacher_finds_likely_too():
    # Three likeliest: the student's are {0, 1, 2}, the teacher's {1, 2, 3}.
    _, metrics = on_student_topk(logits_of(Q), logits_of(P), divergence=reverse_kl, k=3)
    assert metrics["overlap_ratio"].item() == pytest.approx(2 / 3)
    assert metrics["teacher_mass"].item() == pytest.approx(0.6)


@pytest.mark.parametrize("tail", ["tail_bucket", "renormalise"])
@pytest.mark.parametrize("divergence", [reverse_kl, partial(generalized_jsd, beta=0.5)])
@pytest.mark.parametrize("k", [6, 100])
def test_with_all_ids_it_is_the_divergence_itself(divergence, tail, k):
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    loss = valued(on_student_topk, divergence=divergence, k=k, tail=tail)
    torch.testing.assert_close(loss(student, teacher), divergence(student, teacher))
    torch.testing.assert_close(gradient(loss, student, teacher), gradient(divergence, student, teacher))


def test_more_ids_come_closer_from_below():
    """Data processing: merged classes tell two distributions apart no better."""
    student, teacher = draw(50, 8), draw(50, 8, seed=1)
    found = [on_student_topk(student, teacher, divergence=reverse_kl, k=k)[0] for k in range(1, 9)]
    assert all((less <= more + 1e-12).all() for less, more in pairwise(found))
    assert (found[0] < found[-1]).any()


def test_temperature_is_that_of_the_whole_distribution():
    student, teacher = draw(4, 6), draw(4, 6, seed=1)
    warm = on_student_topk(student, teacher, divergence=reverse_kl, k=2, temperature=2.0)
    by_hand = on_student_topk(student / 2, teacher / 2, divergence=reverse_kl, k=2)
    torch.testing.assert_close(warm, by_hand)


def test_the_advantages_of_the_students_ids_by_hand():
    # S = {0, 1}, w = (4/7, 3/7), log q - log p = (log 4, log 1.5). dL/dz_v = sum_S w_s a_s (1[s = v] - q_v).
    student, teacher = logits_of(Q), logits_of(P)
    value = 4 / 7 * log(4) + 3 / 7 * log(1.5)
    slope = torch.tensor([[4 / 7 * log(4), 3 / 7 * log(1.5), 0.0, 0.0]], dtype=student.dtype)
    loss = valued(opd_student_topk, k=2)
    assert loss(student, teacher).item() == pytest.approx(value)
    expected = slope - value * torch.tensor([Q], dtype=student.dtype)
    torch.testing.assert_close(gradient(loss, student, teacher), expected)


def test_the_advantages_of_all_ids_are_the_reverse_kl():
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    loss = valued(opd_student_topk, k=6)
    torch.testing.assert_close(loss(student, teacher), reverse_kl(student, teacher))
    torch.testing.assert_close(gradient(loss, student, teacher), gradient(reverse_kl, student, teacher))


# ---- bounded entries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("clip", [None, 1e3])
def test_a_bound_out_of_reach_changes_nothing(beta, clip):
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    loss, whole = valued(clipped_jsd, beta=beta, clip=clip), partial(generalized_jsd, beta=beta)
    torch.testing.assert_close(loss(student, teacher), whole(student, teacher))
    torch.testing.assert_close(gradient(loss, student, teacher), gradient(whole, student, teacher))


def test_each_id_is_bounded_and_not_the_position():
    # p log(p/q): .1 log .25 = -.1386, .2 log(2/3) = -.0811, .3 log 1.5 = .1216, .4 log 4 = .5545.
    values, metrics = clipped_jsd(logits_of(Q), logits_of(P), clip=0.2)
    assert values.item() == pytest.approx(0.1 * log(0.25) + 0.2 * log(2 / 3) + 0.3 * log(1.5) + 0.2)
    assert metrics["clipped"].item() == pytest.approx(0.4)
    below, _ = clipped_jsd(logits_of(Q), logits_of(P), clip=0.05)  # two of them; the sum is negative
    assert below.item() == pytest.approx(0.1 * log(0.25) + 0.2 * log(2 / 3) + 0.1)


def test_an_id_at_the_bound_has_no_gradient():
    # Of sum_v p_v log(p_v/q_v) without the last id the slope is dL/dz_i = -p_i + q_i sum_{v != 3} p_v, p_3 left out.
    student = logits_of(Q)
    kept = torch.tensor([[0.1, 0.2, 0.3, 0.0]], dtype=student.dtype)
    expected = -kept + torch.tensor([Q], dtype=student.dtype) * 0.6
    torch.testing.assert_close(gradient(valued(clipped_jsd, clip=0.2), student, logits_of(P)), expected)


def test_nothing_is_learnt_of_an_equal():
    student = draw(5, 6)
    for beta in (0.0, 0.5, 1.0):
        loss = valued(clipped_jsd, beta=beta)
        assert loss(student, student).abs().max() < 1e-12
        assert gradient(loss, student, student).abs().max() < 1e-12


# ---- the teacher's entropy -------------------------------------------------------------------------------------------


def test_forward_kl_is_added_where_the_teacher_is_unsure():
    sure, unsure = (0.97, 0.01, 0.01, 0.01), (0.25, 0.25, 0.25, 0.25)  # .168 and 1.386 nats
    student, teacher = logits_of(Q, Q), logits_of(sure, unsure)
    values, metrics = entropy_gated_kl(student, teacher, threshold=0.8)
    reverse, forward = reverse_kl(student, teacher), forward_kl(student, teacher)
    torch.testing.assert_close(values, torch.stack([reverse[0], reverse[1] + forward[1]]))
    assert metrics["gate"].tolist() == [0.0, 1.0]
    replaced, _ = entropy_gated_kl(student, teacher, threshold=0.8, replace=True)
    torch.testing.assert_close(replaced, torch.stack([reverse[0], forward[1]]))


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"threshold": 2.0}, reverse_kl),  # log 6 = 1.79
        ({"threshold": 0.0, "forward": 0.0}, reverse_kl),
        ({"threshold": 0.0, "replace": True}, forward_kl),
    ],
)
def test_its_limits(settings, limit):
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    loss = valued(entropy_gated_kl, **settings)
    torch.testing.assert_close(loss(student, teacher), limit(student, teacher))
    torch.testing.assert_close(gradient(loss, student, teacher), gradient(limit, student, teacher))


def test_a_smooth_gate_is_a_sigmoid_of_the_entropy():
    # H = log 4 is .3863 above the threshold of 1; sigmoid(.3863 / .5) = .6841.
    student, teacher = logits_of(Q), logits_of((0.25, 0.25, 0.25, 0.25))
    _, metrics = entropy_gated_kl(student, teacher, threshold=1.0, width=0.5)
    assert metrics["gate"].item() == pytest.approx(0.68407, abs=1e-4)


# ---- drift -----------------------------------------------------------------------------------------------------------


def policy_case():
    """Two responses of three and two tokens."""
    log_p = torch.tensor([[-1.0, -2.0, -1.0], [-3.0, -1.0, 7.0]], dtype=torch.float64)
    log_q = torch.tensor([[-2.0, -1.0, -3.0], [-1.0, -1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    return log_q, log_p, torch.tensor([[True, True, True], [True, True, False]])


def test_weights_fall_with_what_has_accumulated():
    # |a| = (1, 1, 2), sum 4, before (0, 1, 2): w = 1 + g (1, 3/4, 1/2). And (2, 0), sum 2, before (0, 2): (1 + g, 1).
    log_q, log_p, mask = policy_case()
    values, metrics = opd_by_drift(log_q, log_p, log_q.detach(), log_q.detach(), mask, gamma=2.0)
    assert metrics["weight"][mask].tolist() == pytest.approx([3.0, 2.5, 2.0, 3.0, 1.0])
    # a = log p - log q = (1, -1, 2), (-2, 0)
    assert values[mask].tolist() == pytest.approx([-3.0, 2.5, -4.0, 6.0, 0.0])
    (slope,) = torch.autograd.grad(values[mask].sum(), log_q)
    assert slope[mask].tolist() == pytest.approx([-3.0, 2.5, -4.0, 6.0, 0.0])  # weights are constants


def test_without_amplification_it_is_opd():
    log_q, log_p, mask = policy_case()
    old = log_q.detach() - 0.3
    rows = [x[mask] for x in (log_q, log_p, old, old)]
    expected, _ = opd(*rows, draw(5, 4), clip_low=0.2, clip_high=0.2)
    found, _ = opd_by_drift(log_q, log_p, old, old, mask, gamma=0.0, clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close(found[mask], expected)


def test_equal_models_weigh_all_tokens_alike():
    log_q, _, mask = policy_case()
    _, metrics = opd_by_drift(log_q, log_q.detach(), log_q.detach(), log_q.detach(), mask)
    assert metrics["weight"][mask].tolist() == pytest.approx([1.5] * 5)


def test_those_of_one_row_run_in_chunks():
    for loss in (partial(on_student_topk, divergence=reverse_kl), opd_student_topk, clipped_jsd, entropy_gated_kl):
        assert is_row_wise(loss)
