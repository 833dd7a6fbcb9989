"""A self-teacher that is shown a successful response of the same group.

Run: python -m pytest tests/rollouts/test_privileged_peers.py
"""

from dataclasses import replace

import pytest
import torch

from kd.composition.check import check
from kd.data.chat_template import encode_prompt, response_text
from kd.data.sequences import Encoder
from kd.rewards import Reward
from kd.rollouts import Rollout
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.privileged_peers import PrivilegedPeers
from kd.seeding import seeded
from kd.types import Models, Progress
from tests import runs
from tests.rollouts.test_privileged_self import own
from tests.tiny import records, tiny

GIVEN = records(5)
NOW = Progress(step=0, total=10)
TEMPLATE = "{question} ({demonstration})"
SDPO = ("rollout=privileged_peers", "objective=sdpo")


class ByRow(Reward):
    """The same rewards for the responses to each prompt."""

    provides, requires = frozenset({"rewards"}), frozenset[str]()

    def __init__(self, *rewards: float):
        self.rewards = rewards

    def __call__(self, batches, models):
        return [replace(b, rewards=torch.tensor(self.rewards * len(b.records))) for b in batches]


def encoder_for(student, max_length=200):
    return Encoder(student.tokenizer, None, max_length=max_length, max_tokens=10_000, max_padding=1.0)


def written(*rewards: float, max_length=200, template=TEMPLATE):
    """The rollout and its batches, and the texts of each prompt's group as they were drawn."""
    student = tiny(0)
    models, encoder = Models(student, reward=ByRow(*rewards)), encoder_for(student, max_length)
    rollout = PrivilegedPeers(template=template, max_new_tokens=6, samples=len(rewards))
    made = []
    for one in (OnPolicy(max_new_tokens=6, samples=len(rewards)), rollout):
        with seeded(4, "step", 0):
            made.append(one(encoder.batches(GIVEN), models, NOW, encoder))
    drawn = {kept.id: [r.text for r in kept.responses] for batch in made[0] for kept in batch.records}
    return rollout, made[1], drawn


@pytest.mark.parametrize(
    ("rewards", "demonstrations"),
    [
        ((0.0, 1.0, 0.0), {0: 1, 2: 1}),  # the only success has no other to be shown
        ((1.0, 1.0, 0.0), {0: 1, 1: 0, 2: 0}),  # the first other one
        ((0.4, 0.5, 0.0), {0: 1, 2: 1}),  # a half is enough
    ],
)
def test_each_response_is_read_after_the_first_other_success(rewards, demonstrations):
    rollout, batches, drawn = written(*rewards)
    assert isinstance(rollout, Rollout)
    prompts = {kept.id: kept.prompt for kept in GIVEN}
    seen = set()
    for batch in batches:
        assert batch.group_size == 1
        assert all(getattr(batch, name) is not None for name in rollout.provides)
        for i, kept in enumerate(batch.records):
            ids = batch.student.labels[i][batch.student.mask[i]]
            [row] = [
                k for k in demonstrations if drawn[kept.id][k] == kept.responses[0].text and (kept.id, k) not in seen
            ]
            seen.add((kept.id, row))
            assert response_text(ids.tolist(), tiny().tokenizer) == drawn[kept.id][row]
            assert batch.teacher.labels[i][batch.teacher.mask[i]].tolist() == ids.tolist()
            shown = f"{prompts[kept.id][0]['content']} ({drawn[kept.id][demonstrations[row]]})"
            expected = encode_prompt(({"role": "user", "content": shown},), tiny().tokenizer)
            first = int(batch.teacher.mask[i].int().argmax())
            assert batch.teacher.tokens[i, : first + 1].tolist() == expected
            plain = encode_prompt(prompts[kept.id], tiny().tokenizer)
            assert batch.student.tokens[i, : int(batch.student.mask[i].int().argmax()) + 1].tolist() == plain
    assert seen == {(kept.id, row) for kept in GIVEN for row in demonstrations}
    alone = len(rewards) - len(demonstrations)
    assert rollout.take_report()["without_success"] == (alone * len(GIVEN), len(rewards) * len(GIVEN))


def test_log_probabilities_stay_with_their_response():
    student = tiny(0)
    _, batches, _ = written(1.0, 1.0, 0.0)
    for batch in batches:
        found = student.eval()(batch.student, frozenset({"logprobs"})).logprobs
        mask = batch.student.mask
        torch.testing.assert_close(batch.old_logprobs[mask].double(), found[mask], rtol=1e-4, atol=1e-4)


def test_without_a_success_nothing_is_learnt():
    rollout, batches, _ = written(0.0, 0.0)
    assert [int(batch.student.mask.sum()) for batch in batches] == [0]
    assert rollout.take_report()["without_success"] == (10.0, 10.0)


def test_what_leaves_no_room_for_the_demonstration_is_left_out():
    longest = max(len(encode_prompt(kept.prompt, tiny().tokenizer)) for kept in GIVEN)
    template = "{question}" + 60 * "." + "{demonstration}"
    rollout, batches, _ = written(1.0, 1.0, max_length=longest + 4, template=template)
    assert sum(int(batch.student.mask.sum()) for batch in batches) == 0
    assert rollout.take_report()["left_out"] == (10.0, 10.0)


def test_one_response_has_no_other():
    with pytest.raises(ValueError, match=r"rollout.samples=1 leaves no other response to show"):
        PrivilegedPeers(template=TEMPLATE, max_new_tokens=6, samples=1)


def test_it_requires_a_reward_and_reads_no_reference():
    with pytest.raises(ValueError, match=r"rewards.*reward"):
        check(runs.config(*SDPO, "reward=none", teacher=own()))
    check(runs.config(*SDPO, "reward=verifier", teacher=own()))
