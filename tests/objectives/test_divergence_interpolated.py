"""TAID: the moving target, its way from student to teacher, and what a checkpoint keeps.

Run: python -m pytest tests/objectives/test_divergence_interpolated.py
"""

import copy
import io
from functools import partial
from itertools import pairwise
from math import exp, inf, log, nan

import pytest
import torch

from kd.objectives.divergence import forward_kl
from kd.objectives.interpolated import TAID
from kd.signals import is_row_wise, requires
from kd.types import Progress
from tests.objectives.cases import P, Q, draw, gradient, logits_of, value

LOSSES = (2.0, 1.0, 1.5, 1.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def term() -> TAID:
    """Steps large enough for ten of them to reach the end."""
    return TAID(t_start=0.2, t_end=0.9, alpha=0.5, beta=0.5)


def follow(loss: TAID, losses=LOSSES, done: int = 0, total: int = 10) -> list[float]:
    """t after each step."""
    trace = []
    for step, found in enumerate(losses, start=done + 1):
        loss.after_step(found, Progress(step, total))
        trace.append(loss.t.item())
    return trace


# ---- the target ----


def test_the_target_by_hand():
    # t = 1/2: p_t is proportional to sqrt(p q) = (sqrt .28, sqrt .08, sqrt .02)
    powers = [(p * q) ** 0.5 for p, q in zip(P, Q, strict=True)]
    target = [x / sum(powers) for x in powers]
    by_hand = sum(x * log(x / q) for x, q in zip(target, Q, strict=True))
    assert value(TAID(t_start=0.5)) == pytest.approx(by_hand, rel=1e-7)
    expected = [q - x for x, q in zip(target, Q, strict=True)]
    assert gradient(TAID(t_start=0.5), logits_of(Q), logits_of(P))[0].tolist() == pytest.approx(expected, rel=1e-7)


def test_at_the_start_it_is_the_student_and_at_the_end_the_teacher():
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    start, end = TAID(t_start=0.0), TAID(t_start=1.0)
    assert start(student, teacher).abs().max() < 1e-14
    assert gradient(start, student, teacher).abs().max() < 1e-14
    torch.testing.assert_close(end(student, teacher), forward_kl(student, teacher), rtol=1e-12, atol=0)
    expected = gradient(forward_kl, student, teacher)
    torch.testing.assert_close(gradient(end, student, teacher), expected, rtol=1e-12, atol=1e-14)


def test_cross_entropy_adds_the_targets_entropy():
    student, teacher = draw(8, 11), draw(8, 11, seed=1)
    target = (0.5 * student + 0.5 * teacher).log_softmax(-1)
    entropy = -(target.exp() * target).sum(-1)
    plain, reported = TAID(t_start=0.5), TAID(t_start=0.5, cross_entropy=True)
    torch.testing.assert_close(reported(student, teacher), plain(student, teacher) + entropy, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(reported, student, teacher), gradient(plain, student, teacher))


def test_an_id_that_one_model_excludes_is_halfway_to_excluded():
    # (1 - t) z + t (-inf) would leave it out at any t > 0, and (1 - t) (-inf) at t = 1 would be NaN
    for t in (0.0, 0.5, 1.0):
        loss = partial(TAID(t_start=t))
        for p, q in (((0.5, 0.5, 0.0), (0.25, 0.25, 0.5)), ((0.25, 0.25, 0.5), (0.5, 0.5, 0.0))):
            assert value(loss, p, q) >= 0
            assert gradient(loss, logits_of(q), logits_of(p)).isfinite().all()


def test_it_runs_in_chunks_and_requires_logits_alone():
    assert is_row_wise(TAID())
    assert requires(TAID()) == {"student_logits", "teacher_logits"}


# ---- the way ----


def test_the_trace_by_hand():
    trace = follow(term())
    # The first loss is only remembered; t follows the schedule .2 + .7 / 10.
    expected = [0.27]
    # 2 -> 1 falls by 1/2: m = .5 * 0 + .5 * .5 = .25; the schedule's .34 is behind
    expected.append(0.27 + 0.5 * sigmoid(0.25) * 0.73)
    assert expected[-1] == pytest.approx(0.4751944, abs=1e-7)
    # 1 -> 1.5 rises by 1/2: m = .125 - .25 = -.125
    expected.append(expected[-1] + 0.5 * sigmoid(-0.125) * (1 - expected[-1]))
    assert expected[-1] == pytest.approx(0.5982064, abs=1e-7)
    # no change: m = -.0625
    expected.append(expected[-1] + 0.5 * sigmoid(-0.0625) * (1 - expected[-1]))
    # 1.5 -> .3 falls by .8: m = -.03125 + .4
    expected.append(expected[-1] + 0.5 * sigmoid(0.36875) * (1 - expected[-1]))
    # no change any more: m halves
    for momentum in (0.184375, 0.0921875):
        expected.append(expected[-1] + 0.5 * sigmoid(momentum) * (1 - expected[-1]))
    assert expected[-1] == pytest.approx(0.884845, abs=1e-6)
    # .8848 + .5 * .5115 * .1152 = .914 lies beyond t_end
    assert expected[-1] + 0.5 * sigmoid(0.04609375) * (1 - expected[-1]) > 0.9
    expected += [0.9, 0.9, 0.9]
    assert trace == pytest.approx(expected, rel=1e-6)


def test_without_adaptive_steps_it_is_the_schedule():
    expected = [0.2 + 0.7 * step / 10 for step in range(1, 11)]
    for loss in (TAID(t_start=0.2, t_end=0.9, adaptive=False), TAID(t_start=0.2, t_end=0.9, alpha=0.0)):
        assert follow(loss) == pytest.approx(expected, rel=1e-6)


def test_the_papers_step_is_small_and_the_schedule_is_a_floor():
    # alpha = 5e-4: ten of a thousand steps move t by at most 10 * 5e-4 * .6, and by at least the schedule's .006
    trace = follow(TAID(), total=1000)
    assert all(later > earlier for earlier, later in pairwise(trace))
    assert trace[-1] >= 0.4 + 0.6 * 0.01 - 1e-7
    assert trace[-1] < 0.4 + 0.6 * 0.01 + 10 * 5e-4 * 0.6


def test_a_resumed_run_follows_the_same_trace():
    whole = follow(term())
    first = term()
    head = follow(first, LOSSES[:4])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = term()
    second.load_state_dict(torch.load(file, weights_only=True))
    assert head + follow(second, LOSSES[4:], done=4) == whole  # to the last bit


def test_an_overflow_and_a_loss_of_zero_leave_no_trace_in_the_momentum():
    clean, broken = term(), term()
    follow(clean, LOSSES[:3])
    follow(broken, LOSSES[:2])
    for bad in (nan, inf):
        broken.after_step(bad, Progress(2, 10))
    broken.after_step(LOSSES[2], Progress(3, 10))
    assert broken.momentum == clean.momentum
    broken.after_step(0.0, Progress(4, 10))
    broken.after_step(1.0, Progress(5, 10))  # a rise from 0 has no rate
    assert broken.momentum.isfinite()
    assert abs(broken.momentum) <= 1


def test_forward_does_not_mutate_and_the_target_follows_t():
    loss = term()
    state = copy.deepcopy(loss.state_dict())
    before = value(loss)
    assert value(loss) == before
    assert all(torch.equal(value, loss.state_dict()[name]) for name, value in state.items())
    follow(loss, LOSSES[:3])
    assert value(loss) > before  # nearer to the teacher is farther from the student


def test_it_reports_t():
    loss = term()
    follow(loss, LOSSES[:1])
    total, count = loss.take_report()["taid_t"]
    assert total / count == pytest.approx(0.27, rel=1e-6)


def test_a_start_beyond_the_end_is_refused():
    with pytest.raises(ValueError, match=r"t_start=0\.5 lies above t_end=0\.4"):
        TAID(t_start=0.5, t_end=0.4)
