import math
from fractions import Fraction

import pytest
import torch

from kd.data.sequences import Encoder
from kd.generators.account import metered
from kd.generators.torch import Torch
from kd.rollouts import Rollout
from kd.rollouts.mixed import Mixed
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.replay import Replay
from kd.rollouts.wrapping import records_of
from kd.seeding import seeded, uniform
from kd.types import Models, Progress
from tests.rollouts.reported import Counting, facts, learnt, steps
from tests.tiny import record, records, tiny

GIVEN = records(11)
STUDENT = tiny()
ENCODER = Encoder(STUDENT.tokenizer, None, max_length=200, max_tokens=400)
NOW = Progress(step=3, total=10)
MODELS = Models(STUDENT)


def mixed(share, writer=None, **settings):
    return Mixed(writer or Counting(), seed=1, share=share, **settings)


def both_by_hand(n, p, tail):
    """The counts that a binomial variable falls below, or above, with probability `tail` at the most; exact."""
    p, total, low = Fraction(str(p)), Fraction(0), 0
    masses = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    while total + masses[low] <= tail:
        total, low = total + masses[low], low + 1
    total, high = Fraction(0), n
    while total + masses[high] <= tail:
        total, high = total + masses[high], high - 1
    return low, high


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_a_share_of_nothing_is_offline(per):
    window, writer, before = ENCODER.batches(GIVEN), Counting(), torch.get_rng_state()
    for now in steps(10):
        assert mixed(0.0, writer, per=per)(window, MODELS, now, ENCODER) == window
    assert not any(writer.asked)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_a_share_of_all_is_on_policy(per):
    """The same responses, in the same micro-batches, from the same random numbers."""
    told = []
    for rollout in (OnPolicy(max_new_tokens=6), mixed(1.0, OnPolicy(max_new_tokens=6), per=per)):
        with seeded(1, "step", 3), metered() as meter:
            batches = rollout(ENCODER.batches(GIVEN), MODELS, NOW, ENCODER)
            told.append(([facts(batch) for batch in batches], torch.get_rng_state().tolist()))
        told[-1] += (meter.spent[:3], {k: v for k, v in rollout.take_report().items() if k != "written_share"})
    assert len(told[0][0]) > 1
    assert told[0] == told[1]


def test_one_coin_decides_for_all_of_a_step():
    """By hand: the writer has the steps whose number from the stream is below the share."""
    rollout, expected = mixed(0.5), []
    for now in steps(40, total=40):
        batches = rollout(ENCODER.batches(GIVEN), MODELS, now, ENCODER)
        writers = {int(row) for batch in batches for row in batch.written_by}
        assert len(writers) == 1
        expected.append(2 if uniform(1, "mixed", now.step) < 0.5 else 0)
        assert writers == {expected[-1]}
    assert 0 < expected.count(2) < 40
    assert rollout.take_report()["written_share"] == (11 * expected.count(2), 11 * 40)
    assert rollout.take_report()["written_share"] == (0, 0)


def test_each_record_has_a_coin_of_its_own():
    """And one response, given or written; nobody is lost, nobody is twice."""
    rollout, found = mixed(0.5, per="sequence"), set()
    for now in steps(6):
        batches = rollout(ENCODER.batches(GIVEN), MODELS, now, ENCODER)
        assert sorted(r.id for r in records_of(batches)) == sorted(r.id for r in GIVEN)
        assert {batch.group_size for batch in batches} == {1}
        wrote = {
            r.id for batch in batches for r, by in zip(batch.records, batch.written_by.tolist(), strict=True) if by == 2
        }
        assert wrote == {r.id for r in GIVEN if uniform(1, "mixed", now.step, r.id) < 0.5}
        offline = learnt(ENCODER.batches(GIVEN))
        assert all(ids == offline[name] for name, ids in learnt(batches).items() if name not in wrote)
        found.add(frozenset(wrote))
    assert len(found) == 6  # another choice at each step
    assert all(0 < len(wrote) < 11 for wrote in found)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_the_share_is_met_in_expectation(per, share):
    """Exact binomial bounds, missed by a fair coin once in a million."""
    rollout, n = mixed(share, per=per), 600
    if per == "batch":
        written = sum(rollout.writes(GIVEN[0], now) for now in steps(n, total=n))
    else:
        written = sum(rollout.writes(record(i), now) for now in steps(20, total=20) for i in range(n // 20))
    low, high = both_by_hand(n, share, Fraction(1, 2_000_000))
    assert low <= written <= high
    assert high - low < n / 4


def test_bounds_by_hand():
    """Two tosses with p = 1/2: 1/4, 1/2, 1/4."""
    assert both_by_hand(2, 0.5, Fraction(1, 5)) == (0, 2)
    assert both_by_hand(2, 0.5, Fraction(1, 4)) == (1, 1)


def test_all_ranks_toss_the_same_coin():
    """They differ in torch's generator and in which records they hold."""
    tossed = []
    for rank in range(2):
        torch.manual_seed(rank)
        rollout = mixed(0.5)
        tossed.append([rollout.writes(GIVEN[rank], now) for now in steps(30)])
    assert tossed[0] == tossed[1]
    assert len(set(tossed[0])) == 2


def test_another_seed_tosses_otherwise():
    one, other = (Mixed(Counting(), seed=seed) for seed in (1, 2))
    assert [one.writes(GIVEN[0], now) for now in steps(30)] != [other.writes(GIVEN[0], now) for now in steps(30)]


def test_the_inner_rollout_is_called_even_where_this_rank_has_nothing_for_it(meter):
    """Or another rank would wait for it in a sum over ranks."""
    writer = Counting()
    rollout = mixed(1e-9, writer, per="sequence")
    window = ENCODER.batches(GIVEN)
    assert rollout(window, MODELS, NOW, ENCODER) == window
    assert writer.asked == [[]]
    on_policy = OnPolicy(max_new_tokens=3)
    assert on_policy([], MODELS, NOW, ENCODER) == []
    assert meter.spent[:3] == (0, 0, 0)


def test_an_external_engine_is_called_in_every_step_of_every_rank():
    """Its weights are brought by all ranks together, also by one that has nothing to ask."""
    asked = []

    class Engine(Torch):
        def __call__(self, model, prompts, **settings):
            asked.append(len(prompts))
            return super().__call__(model, prompts, **settings)

    rollout = mixed(1e-9, OnPolicy(max_new_tokens=3, generator=Engine()), per="sequence")
    rollout(ENCODER.batches(GIVEN), MODELS, NOW, ENCODER)
    assert asked == [0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.2), (5, 0.5), (10, 0.8)],  # 0.2 + 0.6 * step / 10
)
def test_a_share_goes_in_a_straight_line(step, expected):
    assert mixed(0.2, final_share=0.8).share(Progress(step, 10)) == pytest.approx(expected, abs=1e-15)
    assert mixed(0.8, final_share=0.2).share(Progress(step, 10)) == pytest.approx(1 - expected, abs=1e-15)
    assert mixed(0.3).share(Progress(step, 10)) == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize(("step", "given"), [(0, 1.0), (5, 0.1), (10, 0.01)])  # .01^(step / 10)
def test_what_is_given_may_fall_exponentially(step, given):
    assert mixed(0.0, final_share=0.99, shape="exponential").share(Progress(step, 10)) == pytest.approx(1 - given)
    upwards = mixed(0.99, final_share=0.0, shape="exponential")  # from .01 to 1
    assert upwards.share(Progress(10 - step, 10)) == pytest.approx(1 - given)


def test_a_budget_that_is_used_up_ends_the_line():
    assert mixed(0.0, final_share=1.0).share(Progress(1, 10, spent=0.5)) == 0.5


def test_the_share_that_counts_is_that_of_the_step():
    rollout = mixed(0.0, final_share=1.0)
    taken = [rollout.writes(GIVEN[0], now) for now in steps(60, total=60)]
    assert taken == [uniform(1, "mixed", step) < step / 60 for step in range(60)]
    assert sum(taken[:20]) < sum(taken[40:])


def test_the_report_of_the_inner_rollout_is_passed_on():
    rollout = mixed(1.0)
    assert isinstance(rollout, Rollout)
    rollout(ENCODER.batches(GIVEN), MODELS, NOW, ENCODER)
    assert rollout.take_report() == {"calls": (1.0, 1.0), "written_share": (11.0, 11.0)}
    rollout.after_validation({"nll": 2.0})
    assert rollout.writer.heard == [{"nll": 2.0}]
    other = mixed(1.0)
    other.load_state_dict(rollout.state_dict())
    assert other.writer.calls == 1
    assert rollout.samples == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"share": 1.5}, "a share of 1.5 is not between 0 and 1"),
        ({"share": 0.5, "final_share": -0.1}, "a share of -0.1"),
        ({"share": 0.0, "final_share": 1.0, "shape": "exponential"}, "is never 0; keep both below 1"),
        ({"share": 0.5, "per": "sequence", "writer": Counting(samples=2)}, "rollout.writer.samples=2"),
        ({"share": 0.5, "writer": Replay(Counting(), uses=2)}, "Replay replays whole windows"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        mixed(**settings)
