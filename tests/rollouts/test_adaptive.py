import io
from copy import deepcopy

import pytest
import torch

import kd.rollouts.adaptive
from kd.data.sequences import Encoder
from kd.rewards.teacher_score import TeacherScore
from kd.rollouts import Rollout
from kd.rollouts.adaptive import Adaptive
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.wrapping import records_of
from kd.seeding import seeded, uniform
from kd.teachers.white_box import WhiteBox
from kd.types import Models, Progress
from tests.rollouts.reported import Counting, facts, steps
from tests.tiny import records, tiny

GIVEN = records(8)
STUDENT = tiny()
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
MODELS = Models(STUDENT)


def adaptive(writer=None, **settings):
    return Adaptive(writer or Counting(), seed=1, **{"capacity": 4, "initial": 0.5, **settings})


def window(step):
    """Two records, others at each step."""
    return ENCODER.batches([GIVEN[2 * step % 8], GIVEN[(2 * step + 1) % 8]])


# What happens in ten steps with a window of 2 and a buffer of 4. phi is 0.5 at first, psi = phi (1 - s / 10):
#   s   psi    u      who                                               buffer holds the steps
TRACE = [
    (1, 0.45, 0.40, "write"),  # u < psi                                    1 1
    (2, 0.40, 0.45, "write"),  # psi <= u < phi, but there is room          1 1 2 2: full
    (3, 0.35, 0.45, "replay"),  # psi <= u < phi
    (4, 0.30, 0.29, "write"),  # u < psi; the oldest two go                 2 2 4 4
    (5, 0.25, 0.50, "given"),  # u = phi is not below it
    # validation: 1.0 is the level.
    (6, 0.20, 0.21, "replay"),
    # validation: 1.09 < 1.0 + 0.1. Nothing.
    (7, 0.15, 0.55, "given"),
    # validation: 1.25 >= 1.1, so phi = 0.6, level 1.25.
    (8, 0.12, 0.55, "replay"),  # 0.6 * 0.2 = 0.12 <= u < 0.6
    # validation: 0.5. Nothing; the level stays at 1.25.
    # validation: 1.3 < 1.35, nothing, though far above 0.5.
    (9, 0.06, 0.05, "write"),  # u < 0.6 * 0.1                              4 4 9 9
    (10, 0.0, 0.0, "replay"),  # psi = 0: nothing is below it
]
VALIDATIONS = {5: [1.0], 6: [1.09], 7: [1.25], 8: [0.5, 1.3]}
BUFFER = {1: [1, 1], 2: [1, 1, 2, 2], 4: [2, 2, 4, 4], 9: [4, 4, 9, 9]}


def test_the_scheduler_does_what_was_worked_out_by_hand(monkeypatch):
    draws = {s - 1: u for s, _, u, _ in TRACE}
    monkeypatch.setattr(kd.rollouts.adaptive, "uniform", lambda seed, name, step: draws[step])
    rollout, found, kept = adaptive(), [], []
    for s, *_ in TRACE:
        given, before = window(s), rollout.writer.calls
        batches = rollout(given, MODELS, Progress(s - 1, 10), ENCODER)
        wrote = rollout.writer.calls > before
        found.append("given" if batches is given else "write" if wrote else "replay")
        assert len(records_of(batches)) == 2
        if wrote:
            assert {r.id for r in records_of(batches)} == {r.id for r in records_of(given)}
        kept = BUFFER.get(s, kept)
        assert [group.step + 1 for group in rollout.buffer.groups] == kept
        for value in VALIDATIONS.get(s, ()):
            rollout.after_validation({"nll": value, "bits_per_byte": 9.0 - value})
    assert found == [branch for *_, branch in TRACE]
    assert rollout.threshold == pytest.approx(0.6)
    assert rollout.writer.calls == 4


@pytest.mark.parametrize(
    ("written", "step", "psi"),
    [  # of the step after `step` in ten, with phi = 0.8
        ("decreasing", 0, 0.72),
        ("decreasing", 7, 0.16),
        ("constant", 0, 0.4),
        ("constant", 9, 0.4),
        ("increasing", 0, 0.08),
        ("increasing", 9, 0.8),
    ],
)
def test_the_share_that_is_written_again(written, step, psi):
    rollout = adaptive(initial=0.8, written=written)
    for s in range(2):  # the buffer is filled
        rollout.buffer.add(Counting()(window(s), MODELS, None, ENCODER), s)
    now = Progress(step, 10)
    assert rollout.branch(psi - 1e-6, now) == "write"
    assert rollout.branch(psi + 1e-6, now) == ("replay" if psi < 0.8 else "given")


def test_the_threshold_grows_to_one_and_no_further():
    """0, 0.1, ... by repeated addition, as released, while every look is worse than the last by 0.2."""
    rollout, expected = adaptive(initial=0.0), 0.0
    rollout.after_validation({"nll": 1.0})
    assert rollout.threshold == 0.0
    for i in range(12):
        rollout.after_validation({"nll": 1.2 + 0.2 * i})
        expected = min(expected + 0.1, 1.0)
        assert rollout.threshold == expected
    assert rollout.threshold == 1.0


def test_a_metric_and_a_tolerance_of_ones_own():
    rollout = adaptive(metric="bits_per_byte", tolerance=0.0, increase=0.25)
    for value in (2.0, 2.0):  # no better is bad enough
        rollout.after_validation({"nll": 0.0, "bits_per_byte": value})
    assert rollout.threshold == 0.75
    with pytest.raises(ValueError, match=r"rollout.metric=bits_per_byte is not measured in validation; known: nll"):
        rollout.after_validation({"nll": 1.0})


def test_the_draw_is_uniform_and_the_same_on_every_rank():
    """u is the stream's number of (seed, "adaptive", step); no generator is touched."""
    rollout, before = adaptive(capacity=1000, initial=0.6), torch.get_rng_state()
    for now in steps(30, total=30):
        given = window(now.step)
        batches = rollout(given, MODELS, now, ENCODER)
        assert (batches is given) == (uniform(1, "adaptive", now.step) >= 0.6)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < rollout.took["given"] < 30


def test_the_numbers_of_a_stream_fill_the_interval():
    """Each tenth has a tenth: P(|count - 100| > 60 of 1000) < 2 exp(-2 * 60^2 / 1000) = 1.5e-3 for each, by Hoeffding;
    the numbers are always the same."""
    numbers = [uniform(5, "adaptive", step) for step in range(1000)]
    assert all(0 <= u < 1 for u in numbers)
    assert all(abs(sum(int(10 * u) == tenth for u in numbers) - 100) <= 60 for tenth in range(10))


def test_a_buffer_is_full_when_every_ranks_is(monkeypatch):
    """Else one would write, and sum over ranks, while another reads."""
    rollout = adaptive()
    for s in range(2):
        rollout.buffer.add(Counting()(window(s), MODELS, None, ENCODER), s)
    now = Progress(9, 10)  # psi = 0
    assert rollout.branch(0.1, now) == "replay"
    monkeypatch.setattr(kd.rollouts.adaptive, "sum_over_ranks", lambda own: own + 1)  # there is room elsewhere
    assert rollout.branch(0.1, now) == "write"
    assert rollout.branch(0.7, now) == "given"


def test_groups_are_kept_whole_and_read_whole():
    rollout = adaptive(Counting(samples=3), capacity=8, initial=1.0)
    for s in range(2):
        rollout(window(s), MODELS, Progress(s, 4), ENCODER)
    assert len(rollout.buffer) == 6  # 9 would not fit
    batches = rollout.writer(window(0), MODELS, None, ENCODER)
    rollout.buffer.add(batches, 2)
    replayed = [rollout(window(s), MODELS, Progress(3, 4), ENCODER) for s in range(3)]
    for batches in replayed:
        assert {batch.group_size for batch in batches} == {3}
        assert sum(len(batch.student.lengths) for batch in batches) == 6


def test_rewards_are_kept_and_signals_of_the_inner_rollout_alone_are_not():
    rollout = adaptive(Counting(samples=2), initial=1.0, capacity=8)
    rollout(window(0), MODELS, Progress(0, 10), ENCODER)
    [_, kept] = rollout.buffer.groups
    assert kept.batch.old_logprobs is kept.batch.behaviour_logprobs is kept.batch.importance_weights is None
    assert kept.batch.written_by.tolist() == [2, 2]
    assert kept.batch.rewards.tolist() == [0.0, 1.0]
    assert kept.batch.group_size == 2


def test_every_branch_has_the_rewards_that_the_composition_counts_on(monkeypatch):
    """rollout=adaptive reward=teacher_score objective=apo_zero: what was judged may be read again."""
    draws = [0.0, 0.0, 0.7, 0.9]  # write, write, replay, given; phi = 0.8, psi falls from 0.72
    monkeypatch.setattr(kd.rollouts.adaptive, "uniform", lambda seed, name, step: draws[step])
    rollout = Adaptive(OnPolicy(max_new_tokens=3), seed=1, capacity=4, initial=0.8)
    judged = Models(STUDENT, WhiteBox(tiny(1)), reward=TeacherScore())
    for now in steps(4):
        batches = rollout(window(now.step), judged, now, ENCODER)
        assert all(len(batch.rewards) == len(batch.student.lengths) for batch in batches)
    told = rollout.take_report()
    assert told["adaptive_written_share"] == (2, 4)
    assert told["adaptive_replayed_share"] == (1, 4)


def test_what_is_logged(monkeypatch):
    draws = {s - 1: u for s, _, u, _ in TRACE}
    monkeypatch.setattr(kd.rollouts.adaptive, "uniform", lambda seed, name, step: draws[step])
    rollout = adaptive()
    for s in range(1, 6):
        rollout(window(s), MODELS, Progress(s - 1, 10), ENCODER)
    told = rollout.take_report()
    assert told["calls"] == (3.0, 1.0)
    assert told["adaptive_threshold"] == (2.5, 5)
    assert told["adaptive_written_share"] == (3, 5)
    assert told["adaptive_replayed_share"] == (1, 5)
    age, count = told["adaptive_staleness"]
    assert count == 2  # read at step 3, written at steps 1 or 2
    assert 2 <= age <= 4
    assert all(pair == (0, 0) for name, pair in rollout.take_report().items() if name != "calls")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"initial": 1.2}, "rollout.initial=1.2 is no probability"),
        ({"capacity": 0}, "rollout.capacity=0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        adaptive(**settings)


def test_a_buffer_that_holds_no_window_is_refused_at_the_first_step():
    rollout = adaptive(Counting(samples=3), capacity=4, initial=0.0)
    with pytest.raises(ValueError, match=r"rollout.capacity=4 is less than the 6 sequences of a window"):
        rollout(window(0), MODELS, Progress(0, 10), ENCODER)


# ---- state -----------------------------------------------------------------------------------------------------------


def real():
    """With a student that writes, and a buffer that is full after two of the windows that it wrote for."""
    rollout = Adaptive(OnPolicy(max_new_tokens=5), seed=3, capacity=4, initial=0.7, written="constant")
    assert isinstance(rollout, Rollout)
    return rollout


def ran(rollout, first, last):
    """What is learnt at the steps from `first` to before `last`, and what the rollout tells there."""
    found = []
    for step in range(first, last):
        with seeded(3, "step", step):
            batches = rollout(window(step), MODELS, Progress(step, 24), ENCODER)
        found.append(([facts(batch) for batch in batches], rollout.take_report()))
        if step % 3 == 2:
            rollout.after_validation({"nll": 1 + 0.2 * ((step // 3) % 3)})
    return found


CUT, END = 13, 24


def halves():
    whole, first = real(), real()
    expected = ran(whole, 0, END)[CUT:]
    ran(first, 0, CUT)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    return expected, torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def cut():
    return halves()


def test_a_run_that_goes_on_is_the_run_that_was_not_cut(cut):
    expected, state = cut
    resumed = real()
    resumed.load_state_dict(state)
    assert ran(resumed, CUT, END) == expected
    told = [pair for _, pair in expected]
    for name in ("adaptive_written_share", "adaptive_replayed_share"):  # each branch comes up after the cut
        assert 0 < sum(pair[name][0] for pair in told) < END - CUT


@pytest.mark.parametrize("name", ["threshold", "level", "buffer"])
def test_a_piece_that_is_missing_is_missed(cut, name):
    expected, state = cut
    assert set(state) == {"attributes", "writer", "buffer"}
    state, fresh = deepcopy(state), real()
    at_the_start = {"threshold": 0.7, "level": None, "buffer": []}
    (state["attributes"] if name in state["attributes"] else state)[name] = at_the_start[name]
    fresh.load_state_dict(state)
    assert ran(fresh, CUT, END) != expected
