from itertools import count, cycle, pairwise

import pytest

from kd.skills.procedural import checked_counts, stream_seed, take_distinct
from kd.types import Record


def asks(question):
    return Record(id="", skill="", prompt=({"role": "user", "content": question},))


def questions(records):
    return [record.prompt[0]["content"] for record in records]


def test_repeats_rejects_and_taken_problems_are_left_out_in_order():
    draws = (asks(q) if q else None for q in cycle(["a", "b", "a", None, "c", "d"]))
    assert questions(take_distinct(draws, 3, {"b"})) == ["a", "c", "d"]


def test_no_draw_is_made_when_nothing_is_wanted():
    assert take_distinct(iter(()), 0) == []


def test_an_exhausted_space_gives_what_there_is():
    draws = (asks(str(i % 7)) for i in count())
    assert questions(take_distinct(draws, 10, {"0", "1"})) == ["2", "3", "4", "5", "6"]


def test_draws_that_are_all_rejected_come_to_an_end():
    assert take_distinct((None for _ in count()), 5) == []


def test_streams_are_far_apart():
    starts = sorted(stream_seed(seed, split) for seed in range(10) for split in ("train", "validation", "test"))
    assert min(b - a for a, b in pairwise(starts)) > 100_000
    assert starts[-1] < 2**31


def test_a_negative_count_is_named():
    with pytest.raises(ValueError, match=r"chain_sum: test=-1 is not a number of records"):
        checked_counts("chain_sum", train=1, validation=0, test=-1)
