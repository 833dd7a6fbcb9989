"""Self-consistency: of several responses to a prompt those stay that arrive at the answer of most."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from kd.augmentation import Resources, Stage
from kd.augmentation.verification import one_each
from kd.metrics.final_number import final_number
from kd.metrics.words import normalised
from kd.types import Record

Form = Literal["number", "text"]


class Majority(Stage):
    """Keeps the responses with the most frequent answer, each as a record: LMSI (arXiv 2210.11610, section 3.1).

    The student samples several paths of reasoning (`kd.augmentation.labeling.SelfLabeling` with samples above 1, the
    paper's 32 at temperature 0.7), and learns those that lead to the answer of the majority: no reference is read. A
    response's score is the share of all responses that have its answer, with which the paper finds accuracy to grow. Of
    answers with as many votes, the one that came first wins.

    Args:
        answer: number: the final number of the text (`kd.metrics.final_number`) | text: all of it, but for case,
            punctuation and articles.
        pattern: a regular expression whose last match in the text is the answer, its first group if it has one; None:
            by `answer`.
        least: share of the responses that the majority has to have.
        most: responses that stay for each prompt, the first ones; None: all.

    A response without an answer has no vote.

    Raises:
        ValueError: `pattern` is no regular expression, `least` is no share, or `most` is not positive.
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        answer: Form = "number",
        pattern: str | None = None,
        least: float = 0.0,
        most: int | None = None,
    ):
        if not 0 <= least <= 1 or (most is not None and most < 1):
            raise ValueError(f"least={least} is a share of the responses, and most={most} a number of them, or null")
        try:
            self.pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error
        self.answer, self.least, self.most = answer, least, most

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """A record for each response of the majority, with it alone."""
        for record in records:
            answers = [self.of(response.text) for response in record.responses]
            votes = Counter(answer for answer in answers if answer is not None)
            if not votes:
                resources.dropped("no answer")
                continue
            winner, count = votes.most_common(1)[0]  # of equal ones the first
            share = count / len(answers)
            if share < self.least:
                resources.dropped("no majority")
                continue
            agreeing = [r for r, found in zip(record.responses, answers, strict=True) if found == winner]
            kept = tuple(replace(response, score=share) for response in agreeing[: self.most])
            yield from one_each(record, kept, "majority")

    def of(self, text: str) -> str | None:
        """The answer that a text arrives at; None where it has none."""
        if self.pattern is not None:
            found = list(self.pattern.finditer(text))
            return normalised(found[-1][1] if self.pattern.groups else found[-1][0]) if found else None
        if self.answer == "text":
            return normalised(text) or None
        number = final_number(text)
        return None if number is None else _canonical(number)


def _canonical(number: str) -> str:
    """A number in plain decimals without leading zeros, and without trailing ones after the point."""
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    plain = f"{whole}.{part}" if part else whole
    return plain if plain == "0" else sign + plain
