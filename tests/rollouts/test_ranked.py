"""Groups in the order of their rewards: every signal moves with its response, and ties say nothing.

Run: python -m pytest tests/rollouts/test_ranked.py
"""

from dataclasses import replace

import pytest
import torch

from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer
from kd.objectives.preference import chosen_likelihood, cpo
from kd.objectives.reduction import Counts, count, reduce
from kd.rewards import Reward
from kd.rollouts import Rollout
from kd.rollouts.ranked import Ranked
from kd.signals import FROM_ROLLOUT, separated
from kd.types import Models, Progress
from tests import runs
from tests.rollouts.reported import Counting, learnt
from tests.tiny import records, tiny

NOW, NOBODY = Progress(step=0, total=10), Models(None)
GIVEN = records(5)
WORDS = byte_tokenizer()
LOGPROBS = frozenset({"logprobs"})
END = WORDS.eos_token_id


@pytest.fixture
def encoder():
    return Encoder(WORDS, None, max_length=200, max_tokens=250)


class Rewarded(Counting):
    """Counting, with rewards by record and variant; `rewards` has those of each record."""

    def __init__(self, rewards: dict[str, list[float]]):
        super().__init__(len(next(iter(rewards.values()))))
        self.given = rewards

    def __call__(self, *args):
        batches = super().__call__(*args)
        for batch in batches:
            batch.rewards = torch.tensor([r for kept in batch.records for r in self.given[kept.id]])
        return batches


class Nothing(Reward):
    """A reward of 0, whatever was written."""

    provides, requires = frozenset({"rewards"}), frozenset[str]()

    def __call__(self, batches, models):
        return [replace(batch, rewards=torch.zeros(len(batch.student.lengths))) for batch in batches]


def rank(writer, encoder, **settings):
    ranked = Ranked(writer, **settings)
    return ranked(encoder.batches(GIVEN), NOBODY, NOW, encoder), ranked


def variant(number: int) -> list[int]:
    """The ids of `Counting`'s variant."""
    return [*WORDS("0" + "!" * number, add_special_tokens=False)["input_ids"], END]


def alike(rewards: list[float]) -> dict[str, list[float]]:
    return {given.id: rewards for given in GIVEN}


def test_the_best_stands_first_and_the_worst_last(encoder):
    batches, ranked = rank(Rewarded(alike([0.5, 2.0, -1.0, 1.0])), encoder)
    assert len(batches) > 1
    assert learnt(batches) == {given.id: [variant(1), variant(2)] for given in GIVEN}
    for batch in batches:
        assert batch.group_size == 2
        assert batch.rewards.view(-1, 2).tolist() == [[2.0, -1.0]] * len(batch.records)
        assert [r.text for kept in batch.records for r in kept.responses] == ["0!", "0!!"] * len(batch.records)
    assert isinstance(ranked, Rollout)
    assert ranked.provides <= FROM_ROLLOUT


def test_whole_lists_are_sorted(encoder):
    batches, _ = rank(Rewarded(alike([0.5, 2.0, -1.0, 1.0])), encoder, keep="all")
    assert learnt(batches) == {given.id: [variant(i) for i in (1, 3, 0, 2)] for given in GIVEN}
    assert all(batch.group_size == 4 for batch in batches)


def test_every_signal_moves_with_its_response(encoder):
    """Counting's log-probabilities are minus the place in the response, so they say which response they are of."""
    batches, _ = rank(Rewarded(alike([0.0, 1.0, 2.0])), encoder)
    for batch in batches:
        for row, mask in enumerate(batch.student.mask):
            length = int(mask.sum())
            assert length == [4, 2][row % 2]  # "0!!" and its end, "0" and its end
            assert batch.behaviour_logprobs[row][mask].tolist() == [-i for i in range(1, length + 1)]
            assert batch.old_logprobs[row][mask].tolist() == [-i / 2 for i in range(1, length + 1)]
            assert not batch.old_logprobs[row][~mask].any()
        assert batch.student.tokens.shape[1] == batch.student.lengths.max()
        assert batch.old_logprobs.shape == batch.student.tokens.shape


def test_a_teacher_with_other_tokens_reads_the_same_order():
    teacher = byte_tokenizer()
    teacher.chat_template = "Now. " + teacher.chat_template
    encoder = Encoder(WORDS, teacher, max_length=200, max_tokens=250)
    batches, _ = rank(Rewarded(alike([0.0, 2.0, 1.0])), encoder)
    for batch in batches:
        for row, mask in enumerate(batch.teacher.mask):
            assert batch.teacher.labels[row][mask].tolist() == variant([1, 0][row % 2])


def test_of_equal_rewards_the_first_written_stands_first(encoder):
    batches, _ = rank(Rewarded(alike([1.0, 0.0, 1.0, 0.0])), encoder, keep="all")
    assert learnt(batches) == {given.id: [variant(i) for i in (0, 2, 1, 3)] for given in GIVEN}


def test_groups_without_a_preference_are_dropped(encoder):
    rewards = alike([1.0, 0.0]) | {"1": [1.0, 1.0], "3": [0.0, 0.0]}
    batches, ranked = rank(Rewarded(rewards), encoder)
    assert learnt(batches).keys() == {"0", "2", "4"}
    assert ranked.take_report()["without_preference"] == (2, 5)
    assert ranked.take_report()["without_preference"] == (0, 0)


@pytest.mark.parametrize(("margin", "kept"), [(0.0, {"0", "1", "2", "3", "4"}), (0.5, {"1", "2", "3", "4"})])
def test_a_margin_requires_more(encoder, margin, kept):
    batches, _ = rank(Rewarded(alike([1.0, 0.25]) | {"0": [1.0, 0.5]}), encoder, margin=margin)
    assert learnt(batches).keys() == kept


@pytest.mark.parametrize(("keep", "size"), [("best_and_worst", 2), ("all", 3)])
def test_a_step_without_any_preference_keeps_a_group_that_teaches_nothing(encoder, keep, size):
    [batch], ranked = rank(Rewarded(alike([0.0, 0.0, 0.0])), encoder, keep=keep)
    assert batch.group_size == size
    assert len(batch.records) == 1
    assert learnt([batch]) == {batch.records[0].id: [[]] * size}
    assert batch.teacher is batch.student
    assert not batch.old_logprobs.any()
    assert not count([batch]).any()
    assert ranked.take_report()["without_preference"] == (5, 5)


def test_a_teacher_with_other_tokens_learns_nothing_from_such_a_group_either():
    teacher = byte_tokenizer()
    teacher.chat_template = "Now. " + teacher.chat_template
    encoder = Encoder(WORDS, teacher, max_length=200, max_tokens=250)
    [batch], _ = rank(Rewarded(alike([0.0, 0.0])), encoder)
    assert not batch.student.mask.any()
    assert not batch.teacher.mask.any()


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_ranks_change_nothing_where_one_of_them_has_ties_alone(encoder, reduction):
    """A decided group and a tie, on one rank or on two: likelihood and preference are those of the decided group."""
    student, rewards = tiny(), {"0": [1.0, 0.0], "1": [0.0, 0.0]}

    def step(*ranks):
        student.zero_grad()
        written = [Ranked(Rewarded(rewards))(encoder.batches(r), NOBODY, NOW, encoder) for r in ranks]
        counts = Counts(*sum(count(batches) for batches in written).tolist())
        told = []
        for term in (chosen_likelihood, cpo):
            for batch in (b for batches in written for b in batches):
                found = term(student(batch.student, LOGPROBS).logprobs, batch.student.mask, batch.group_size)
                values, _ = separated(found)
                told.append(reduce(values, batch.student.mask, counts, domain="P", reduction=reduction))
        sum(told).backward()
        return counts, sum(told).item(), [p.grad.clone() for p in student.parameters()]

    (one, value, gradient), (two, same, equal) = step(GIVEN[:2]), step(GIVEN[:1], GIVEN[1:2])
    assert one == two
    assert one.groups == 1
    assert value == pytest.approx(same)
    torch.testing.assert_close(gradient, equal)
    _, nothing, silent = step(GIVEN[1:2])
    assert nothing == 0
    assert not any(g.any() for g in silent)


@pytest.mark.parametrize("objective", ["[cpo,orpo]", "[sft,fkl]", "[rrhf,listwise]", "reward_model"])
def test_a_run_of_ties_alone_learns_nothing(tmp_path, objective):
    """Whatever is read of the models: no response is right, so all rewards are 0; the run ends in a sentence."""
    cfg = runs.config(
        *(f"objective={objective}", "rollout=ranked", "optim.steps=2"),
        *("rollout.writer.samples=2", "rollout.writer.max_new_tokens=3", "checkpoint.validate=2"),
        reward={"_target_": "tests.rollouts.test_ranked.Nothing"},
    )
    before = runs.build(cfg).module.student.state_dict()
    with pytest.raises(ValueError, match="nothing was learnt"):
        runs.train(cfg, tmp_path)
    after = runs.checkpoint(tmp_path)["state_dict"]
    assert all(torch.equal(value, after[f"student.{name}"]) for name, value in before.items())
    told = runs.metrics(tmp_path)
    assert float(told["2,train,loss"]) == 0
    assert float(told["2,train,without_preference"]) == 1


def test_the_report_of_the_inner_rollout_is_passed_on(encoder):
    _, ranked = rank(Rewarded(alike([0.0, 1.0])), encoder)
    assert ranked.take_report()["calls"] == (1, 1)
    assert ranked.state_dict()["writer"]["attributes"]["calls"] == 1


def test_an_empty_window_stays_empty(encoder):
    assert Ranked(Counting(2))([], NOBODY, NOW, encoder) == []


def test_responses_without_rewards_are_refused(encoder):
    class Unjudged(Counting):
        def __call__(self, *args):
            batches = super().__call__(*args)
            for batch in batches:
                batch.rewards = None
            return batches

    with pytest.raises(ValueError, match="but they have none; take reward=verifier"):
        rank(Unjudged(2), encoder)


@pytest.mark.parametrize(
    ("samples", "settings", "sentence"),
    [(1, {}, "rollout.writer.samples=1 leaves nothing to rank"), (2, {"margin": -1.0}, "rollout.margin=-1.0")],
)
def test_settings_are_checked(samples, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Ranked(Counting(samples), **settings)
