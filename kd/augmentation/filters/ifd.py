"""Instruction-following difficulty: how little an instruction helps a model to predict its response."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal

from kd.augmentation import Resources
from kd.augmentation.filters import Selection, highest
from kd.augmentation.filters.difference import NO_SCORE
from kd.augmentation.filters.likelihood import likelihoods
from kd.types import Record


class IFD(Selection):
    """Keeps the records with the highest instruction-following difficulty below 1 under the student (arXiv 2308.12032).

    IFD = s(A|Q) / s(A): the mean negative log-likelihood of the answer's tokens after the instruction, over that
    without it. From 1 on the instruction does not help to predict the answer, so they do not belong together; near 0
    there is nothing to learn. The paper's model has first learnt a thousand records of the data; here it is the student
    before the first step, in a loop (docs/loops.md) that of the round before. s(A) is read after an empty message.

    Args:
        share: of the records that stay, counted of all; the paper's 0.05 to 0.15.
        below: records of this IFD or more are dropped; the paper's 1.

    A record without responses, or with one that does not fit whole into `data.max_length`, is dropped.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})
    by: ClassVar[Literal["teacher", "student"]] = "student"
    name: ClassVar[str] = "ifd"

    def __init__(self, *, share: float = 0.1, below: float = 1.0):
        super().__init__(share=share)
        self.below = below

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        records = list(records)
        values = self.difficulties(records, resources)
        known = [(i, value) for i, value in enumerate(values) if value is not None and value < self.below]
        count = min(1.0, self.share * len(records) / len(known)) if known else 1.0
        stay = {known[place][0] for place in highest([value for _, value in known], count)} if known else set()
        for i, (record, value) in enumerate(zip(records, values, strict=True)):
            yield record, None if i in stay else self._fault(value)

    def difficulties(self, records: Sequence[Record], resources: Resources) -> list[float | None]:
        """The IFD of each record; None where the model cannot read all responses whole."""
        model = resources.student if self.by == "student" else resources.teacher
        assert model is not None  # `requires`
        after, alone = (
            likelihoods(model, records, max_length=resources.max_length, questions=each) for each in (True, False)
        )
        return [
            None if a is None or b is None else self.ratio(a.nll / a.tokens, b.nll / b.tokens)
            for a, b in zip(after, alone, strict=True)
        ]

    @staticmethod
    def ratio(after: float, alone: float) -> float:
        """IFD from both means; 0 where the response is certain after its instruction, whatever it is without."""
        return 0.0 if after == 0 else after / alone if alone > 0 else math.inf

    def _fault(self, value: float | None) -> str:
        if value is None:
            return NO_SCORE
        return "instruction that does not help" if value >= self.below else "low difficulty"


class Superfiltering(IFD):
    """The same under the teacher, or whatever small model stands in its place, with perplexities (arXiv 2402.00530).

    Superfiltering finds that a weaker model ranks the records as the one that is trained does; so the student need not
    be read. Its IFD is the ratio of the perplexities, PPL(A|Q) / PPL(A), and not of their logarithms.

    Args:
        share, below: as in `IFD`.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "native_teacher_logprobs"})
    by: ClassVar[Literal["teacher", "student"]] = "teacher"
    name: ClassVar[str] = "superfiltering"

    @staticmethod
    def ratio(after: float, alone: float) -> float:
        """The ratio of the perplexities."""
        return math.exp(min(after - alone, 700.0))
