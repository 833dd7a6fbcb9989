"""Novelty: of instructions that a model generates, those stay that are unlike all before.

Example:
    >>> pool = Pool(["Sort a list of numbers."])
    >>> pool.add("Sort the list of numbers!"), pool.add("Name a river in Asia.")
    (False, True)
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.filters import Filter, instruction
from kd.metrics.overlap import common_subsequence
from kd.metrics.words import rouge_tokens
from kd.types import Record

BELOW = 0.7  # ROUGE-L with every text of the pool
SHORTEST, LONGEST = 4, 150  # words of an instruction
# What a language model cannot do, or what is no instruction: the list of Self-Instruct's code.
UNFIT = ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot")
_UNFIT = re.compile(rf"\b(?:{'|'.join(UNFIT)}|go to)\b", re.IGNORECASE)


class Pool:
    """Instructions of which each had a ROUGE-L F1 below a bound with every one before it.

    Self-Instruct (arXiv 2212.10560, section 2.2, "Filtering and Postprocessing"): a new instruction is added to the
    task pool only if its ROUGE-L with any existing one is less than 0.7. Texts without a word are never new.

    Args:
        texts: the pool at the beginning, which is not compared with itself.
        below: the bound.

    Raises:
        ValueError: the bound is not above 0 and at most 1.
    """

    def __init__(self, texts: Iterable[str] = (), *, below: float = BELOW):
        if not 0 < below <= 1:
            raise ValueError(f"below={below} is no bound of ROUGE-L, which is between 0 and 1; 0.7 is Self-Instruct's")
        self.below = below
        self._members = [_counted(text) for text in texts]

    def __len__(self) -> int:
        return len(self._members)

    def is_new(self, text: str) -> bool:
        """Return whether the text has a word, and a ROUGE-L below the bound with all texts of the pool."""
        found = _counted(text)
        like = (m for m in self._members if _most(found, m) >= self.below and _rouge_l(found, m) >= self.below)
        return bool(found[0]) and next(like, None) is None

    def add(self, text: str) -> bool:
        """Add the text if it is new. Returns whether it was."""
        if is_new := self.is_new(text):
            self._members.append(_counted(text))
        return is_new


def unfit(text: str) -> str | None:
    """Why a generated instruction is none for a language model, a short noun phrase; None where it may be one.

    The heuristics of Self-Instruct (arXiv 2212.10560, section 2.2), as its code has them: fewer than 4 words or more
    than 150; words such as "image" or "file"; "Write a program"; a beginning with punctuation or outside of ASCII.
    """
    words = len(text.split())
    if not SHORTEST <= words <= LONGEST:
        return "short instruction" if words < SHORTEST else "long instruction"
    first = text.lstrip()[0]
    if first in string.punctuation or not first.isascii():
        return "instruction that begins oddly"
    if _UNFIT.search(text) or text.lstrip().startswith("Write a program"):
        return "instruction beyond text"
    return None


class Novel(Filter):
    """Drops a record whose last message is like that of an earlier one, by Self-Instruct's rule (`Pool`).

    Args:
        below: records stay whose ROUGE-L F1 with each earlier record that stayed is less.
        heuristics: whether Self-Instruct's other rules count, too (`unfit`): English instructions of 4 to 150 words
            that require neither image nor file.
    """

    name: ClassVar[str] = "novel"

    def __init__(self, *, below: float = BELOW, heuristics: bool = False):
        self.below, self.heuristics = below, heuristics
        Pool(below=below)

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        pool = Pool(below=self.below)
        for record in records:
            text = instruction(record)
            reason = (
                "instruction without a word" if not rouge_tokens(text) else unfit(text) if self.heuristics else None
            )
            yield record, reason or (None if pool.add(text) else "known instruction")


Words = tuple[list[str], Counter[str]]


def _counted(text: str) -> Words:
    words = rouge_tokens(text)
    return words, Counter(words)


def _rouge_l(one: Words, other: Words) -> float:
    shared = common_subsequence(one[0], other[0])
    return 2 * shared / (len(one[0]) + len(other[0])) if shared else 0.0


def _most(one: Words, other: Words) -> float:
    """The most that ROUGE-L can be, by the numbers of shared words in any order; it costs less."""
    total = len(one[0]) + len(other[0])
    return 2 * (one[1] & other[1]).total() / total if total else 0.0
