"""Problems that a generator draws without end: the number in each split, and how distinct ones are taken."""

import re
from collections.abc import Callable, Iterator, Set
from random import Random
from typing import Protocol, runtime_checkable

from kd.types import Record, Split

PATIENCE = 200  # fruitless draws in a row, besides ten for every problem known, before a space counts as empty


@runtime_checkable
class Redrawing(Protocol):
    """A skill that draws a record's problem again with other numbers and computes the new answer."""

    def redrawn(self, record: Record, seed: int) -> Record | None:
        """Such a problem, in no split of the skill, whose reference its scorer accepts; None where there is none.

        seed: of the draw; the same record and seed give the same problem.
        """


def without_numbers(text: str) -> str:
    """The text with `#` in place of each number: by which two problems have the same words."""
    return re.sub(r"\d+(?:[.,]\d+)*", "#", text)


def checked_counts(skill: str, *, train: int, validation: int, test: int) -> dict[Split, int]:
    """The number of records per split.

    Raises:
        ValueError: a count is negative.
    """
    counts: dict[Split, int] = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{skill}: {split}={count} is not a number of records; give 0 or more.")
    return counts


def stream_seed(seed: int, split: Split) -> int:
    """Where the draws of a split start: far from those of the other splits and of other seeds.

    Generators seed problem i with `seed + i`, so that neighbouring seeds would give shifted copies of one list.
    """
    return Random(f"{split} {seed}").randrange(2**31)  # numpy wants seeds below 2^32


def problem(record: Record) -> str:
    """The text by which two problems are the same."""
    return record.prompt[-1]["content"]


def by_text(record: Record) -> set[str]:
    """Its problem by nothing else."""
    return {problem(record)}


def take_distinct(
    draws: Iterator[Record | None],
    count: int,
    taken: Set[str] = frozenset(),
    names: Callable[[Record], Set[str]] = by_text,
) -> list[Record]:
    """The first `count` records whose problem is neither in `taken` nor drawn before, under none of its `names`.

    A draw of None was rejected by its generator's owner. Fewer records come back when the problems run out:
    when PATIENCE draws, and ten times as many as there are problems known, bring nothing new. (Of M equally
    likely problems the last one escapes 10 M draws with probability e^-10.)
    """
    records: list[Record] = []
    known = set(taken)
    fruitless = 0
    while len(records) < count and fruitless < PATIENCE + 10 * len(known):
        record = next(draws)
        if record is None or known & names(record):
            fruitless += 1
            continue
        known |= names(record)
        records.append(record)
        fruitless = 0
    return records
