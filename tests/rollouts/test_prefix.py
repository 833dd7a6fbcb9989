"""Responses whose length follows a schedule.

Run: python -m pytest tests/rollouts/test_prefix.py
"""

import logging

import pytest

from kd.data.sequences import Encoder
from kd.rollouts import Rollout
from kd.rollouts.mixed import Mixed
from kd.rollouts.on_policy import OnPolicy
from kd.rollouts.prefix import Prefix
from kd.seeding import seeded
from kd.types import Models, Progress
from tests.rollouts.reported import learnt
from tests.tiny import records, tiny

GIVEN = records(40)


def step(rollout, student, now: int, given=GIVEN[:4]):
    encoder = Encoder(student.tokenizer, None, max_length=200, max_tokens=10_000)
    with seeded(4, "step", 0):
        return rollout(encoder.batches(given), Models(student), Progress(now, 10), encoder)


def lengths(batches) -> list[int]:
    return [int(n) for batch in batches for n in batch.student.mask.sum(1)]


@pytest.mark.parametrize(("now", "expected"), [(0, 2), (1, 3), (3, 5), (5, 8), (9, 8)])
def test_the_length_follows_the_schedule(now, expected):
    # From 2 to 8 until the middle of ten steps: 2 + 6 (3/5) = 5.6, rounded down.
    rollout = Prefix(OnPolicy(max_new_tokens=20), length={"start": 2, "end": 8, "until": 0.5})
    assert isinstance(rollout, Rollout)
    assert rollout.length(Progress(now, 10)) == expected
    found = lengths(step(rollout, tiny(0), now))
    assert max(found) == expected  # random weights end a response by chance alone
    assert rollout.take_report()["prefix_length"] == (expected, 1)


def test_responses_are_the_beginnings_of_those_without_a_bound():
    """Drawn from the same random numbers, so that a prefix out of reach is the writer itself."""
    student = tiny(0)
    whole, out_of_reach = (
        step(rollout, student, 0)
        for rollout in (OnPolicy(max_new_tokens=6), Prefix(OnPolicy(max_new_tokens=6), length=100))
    )
    assert learnt(out_of_reach) == learnt(whole)


def test_cuts_on_purpose_raise_no_warning(caplog):
    student = tiny(0)
    with caplog.at_level(logging.WARNING):
        step(Prefix(OnPolicy(max_new_tokens=20), length=1), student, 0, GIVEN)
        assert not caplog.records
        step(OnPolicy(max_new_tokens=1), student, 0, GIVEN)
        assert "were cut off before they ended" in caplog.text


@pytest.mark.parametrize(
    ("length", "sentence"),
    [({"start": 0, "end": 8}, "below one token"), ({"start": 4, "end": 0.5}, "below one token")],
)
def test_a_length_below_a_token_is_refused(length, sentence):
    with pytest.raises(ValueError, match=sentence):
        Prefix(OnPolicy(max_new_tokens=20), length=length)


def test_a_writer_that_wraps_another_is_refused():
    with pytest.raises(ValueError, match="Mixed generates nothing itself"):
        Prefix(Mixed(OnPolicy(max_new_tokens=4), seed=0), length=2)
