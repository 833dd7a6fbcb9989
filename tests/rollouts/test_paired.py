"""Groups headed by the preferred response: who stands where, who wrote it, and what the student thought of it.

Run: python -m pytest tests/rollouts/test_paired.py
"""

from dataclasses import replace

import pytest
import torch

from kd.data.sequences import Encoder
from kd.generators.account import metered
from kd.models.flops import decoding_flops
from kd.objectives.preference import dpo
from kd.rewards.verifier import Verifier
from kd.rollouts import Rollout
from kd.rollouts.paired import Demonstrated, Paired
from kd.seeding import seeded
from kd.signals import FROM_ROLLOUT
from kd.teachers.white_box import WhiteBox
from kd.types import WRITERS, Models, Progress, Response
from tests import runs
from tests.objectives.alone import values_of
from tests.rollouts.reported import learnt
from tests.tiny import record, records, tiny

GIVEN = records(7)
NOW = Progress(step=0, total=10)
LENGTH = 6


@pytest.fixture
def student():
    return tiny()


@pytest.fixture
def encoder(student):
    return Encoder(student.tokenizer, None, max_length=200, max_tokens=300)


def write(rollout, models, encoder, given=GIVEN):
    with seeded(0, "writing"):
        return rollout(encoder.batches(given), models, NOW, encoder)


@pytest.mark.parametrize("made", [Paired, Demonstrated])
def test_what_is_provided_is_known_and_filled(made, student, encoder):
    rollout = made(max_new_tokens=LENGTH)
    assert isinstance(rollout, Rollout)
    assert rollout.provides <= FROM_ROLLOUT
    for batch in write(rollout, Models(student), encoder):
        assert all(getattr(batch, name) is not None for name in rollout.provides)


def test_the_preferred_response_stands_first_and_is_the_records_own(student, encoder):
    batches = write(Paired(max_new_tokens=LENGTH), Models(student), encoder)
    assert len(batches) > 1
    assert {batch.group_size for batch in batches} == {2}
    found = learnt(batches)
    assert found.keys() == {given.id for given in GIVEN}
    for given in GIVEN:
        preferred, own = found[given.id]
        assert preferred == list(encoder.given(given)[0].ids)
        assert own != preferred
        assert len(own) <= LENGTH
    for batch in batches:
        assert [WRITERS[i] for i in batch.written_by] == ["reference", "student"] * len(batch.records)
        assert all([r.source for r in given.responses] == ["reference", "student"] for given in batch.records)


def test_a_teachers_response_is_called_the_teachers(student, encoder):
    labelled = [replace(given, responses=(Response("Four.", "teacher"),)) for given in GIVEN]
    for batch in write(Paired(max_new_tokens=LENGTH), Models(student), encoder, labelled):
        assert [WRITERS[i] for i in batch.written_by] == ["teacher", "student"] * len(batch.records)


def test_of_several_responses_the_first_is_preferred(student, encoder):
    two = [record(i, "2 + 2 = ?", "four", "five") for i in range(3)]
    for batch in write(Paired(max_new_tokens=LENGTH), Models(student), encoder, two):
        assert all(kept.responses[0].text == "four" for kept in batch.records)
        assert batch.group_size == 2


def test_more_samples_make_longer_groups_that_stay_whole(student, encoder):
    batches = write(Paired(samples=3, max_new_tokens=LENGTH), Models(student), encoder)
    for batch in batches:
        assert batch.group_size == 4
        assert len(batch.student.lengths) == 4 * len(batch.records)
        assert batch.written_by.view(-1, 4).tolist() == [[0, 2, 2, 2]] * len(batch.records)


def test_the_opponent_may_be_the_students_starting_point(student, encoder):
    """The reference writes what it would write on its own, whatever the student has become."""
    reference, changed = tiny(seed=0), tiny(seed=5)
    rollout = Paired(max_new_tokens=LENGTH, opponent="reference", temperature=0.0)
    found = learnt(write(rollout, Models(changed, reference=WhiteBox(reference)), encoder))
    alone = learnt(write(Paired(max_new_tokens=LENGTH, temperature=0.0), Models(reference), encoder))
    other = learnt(write(Paired(max_new_tokens=LENGTH, temperature=0.0), Models(changed), encoder))
    assert found == alone
    assert found != other


def test_an_opponent_that_was_not_kept_is_required(student, encoder):
    with pytest.raises(ValueError, match=r"rollout.opponent=reference: no term requires the student before training"):
        write(Paired(max_new_tokens=LENGTH, opponent="reference"), Models(student), encoder)


def test_log_probabilities_are_known_for_what_was_written_alone(student, encoder):
    for batch in write(Paired(max_new_tokens=LENGTH), Models(student), encoder):
        assert batch.old_logprobs is None  # of the preferred ones nobody knows


def test_demonstrations_are_read_by_the_student(student, encoder):
    """At temperature 1 all are the student's own log-probabilities, now; ratios are 1."""
    rollout = Demonstrated(samples=2, max_new_tokens=LENGTH)
    for batch in write(rollout, Models(student), encoder):
        with torch.no_grad():
            now = student(batch.student, frozenset({"logprobs"})).logprobs.float()
        torch.testing.assert_close(batch.old_logprobs, now, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(batch.behaviour_logprobs, batch.old_logprobs, rtol=1e-4, atol=1e-4)
        assert batch.written_by.view(-1, 3).tolist() == [[0, 2, 2]] * len(batch.records)


def test_what_is_written_and_read_is_counted(student, encoder):
    plain, read = Paired(max_new_tokens=LENGTH), Demonstrated(samples=1, max_new_tokens=LENGTH)
    with metered() as generating:
        batches = write(plain, Models(student), encoder)
    with metered() as both:
        write(read, Models(student), encoder)
    own = sum(len(group[1]) for group in learnt(batches).values())
    assert generating.spent.generated_tokens == both.spent.generated_tokens == own
    rows = [encoder.encode(given)[0] for given in GIVEN]
    lengths = [len(row.ids) - row.prompt for row in rows]
    reading = decoding_flops(student, [row.prompt for row in rows], lengths)
    assert both.spent.decoding_flops - generating.spent.decoding_flops == reading


def test_the_reward_judges_all_of_a_group(student, encoder):
    class ToTheLetter(runs.Toy):
        def score(self, record, text):
            return float(text == by_id[record.id])

    by_id = {given.id: given.responses[0].text for given in GIVEN}
    models = Models(student, reward=Verifier(ToTheLetter()))
    for batch in write(Paired(samples=2, max_new_tokens=LENGTH), models, encoder):
        assert batch.rewards.view(-1, 3).tolist() == [[1, 0, 0]] * len(batch.records)


def test_a_sample_that_is_the_preferred_response_teaches_a_preference_nothing(student, encoder):
    given = encoder.given(GIVEN[0])[0]
    [batch] = encoder.written([GIVEN[0]], [[given, replace(given, source="student")]])
    logprobs = student(batch.student, frozenset({"logprobs"})).logprobs
    values_of(dpo)(logprobs, logprobs.detach(), batch.student.mask, 2).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-12 for p in student.parameters())
