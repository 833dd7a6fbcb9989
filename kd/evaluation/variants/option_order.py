"""The lettered options of a question in another order; the right letter goes with its text.

Models prefer places: Zheng et al. 2023, "Large Language Models Are Not Robust Multiple Choice Selectors", arXiv
2309.03882.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kd.data.recognition import CHOICES, LETTERS, RIGHT
from kd.evaluation.variants.editable import Span, question, spliced, stream, with_question
from kd.types import Record

VERSION = 2  # numbers of the right option, and other lists and names of options, follow
GOLD = ("references", "letter", *(name for name in RIGHT if name != "answer_index"))  # right answers in `meta`


def option_order(record: Record, seed: int) -> Record | None:
    """The record with its options in an order drawn by its id, never the given one (`reordered`)."""
    count = len(record.meta.get("choices") or ())
    if count < 2:
        return None
    random, order = stream(record, seed, "option_order"), list(range(count))
    while order == list(range(count)):
        random.shuffle(order)
    return reordered(record, order)


def reordered(record: Record, order: Sequence[int]) -> Record | None:
    """The record whose option i is option `order[i]` of the given one.

    `meta["choices"]` are the options' texts, or their letters. Letters in the question stay in order, their texts move.
    What follows: `choices`, `options`, `answer_index`, `relevance`; and responses and right answers (GOLD) that are a
    letter (`B`, `(b)`, `B. text`) or the number of the right option, from 0 or from 1. None where the question does not
    list all options by letter, an answer names a letter within a longer text, or a number may be the place of the right
    option or its text.
    """
    meta, text = dict(record.meta), question(record)
    choices, right = [str(one) for one in meta.get("choices") or ()], meta.get("answer_index")
    spans = _options(text, choices)
    if spans is None or not isinstance(right, int):
        return None
    move = _Move(order, right, [text[start:end] for start, end in spans])
    found = {key: move.answer(meta[key]) for key in GOLD if meta.get(key) is not None}
    responses = [move.answer(one.text) for one in record.responses]
    if None in (*found.values(), *responses):
        return None
    found |= {key: move.listed(meta[key], choices) for key in ("relevance", *CHOICES) if meta.get(key)}
    answered = tuple(replace(old, text=str(one)) for one, old in zip(responses, record.responses, strict=True))
    moved = with_question(record, move.spliced(text, spans))
    return replace(moved, responses=answered, meta={**meta, **found, "answer_index": move.new})


@dataclass(frozen=True)
class _Move:
    """Options in another order. right: the place of the right one. texts: of the options, in the given order."""

    order: Sequence[int]
    right: int
    texts: Sequence[str]

    @property
    def new(self) -> int:
        """The place of the right option afterwards."""
        return list(self.order).index(self.right)

    @property
    def renamed(self) -> dict[str, str]:
        """The letter of each option, and that which it has afterwards."""
        return {LETTERS[old]: LETTERS[i] for i, old in enumerate(self.order)}

    def spliced(self, text: str, spans: Sequence[Span]) -> str:
        """The text with the options at these places in the new order."""
        parts = [text[start:end] for start, end in spans]
        return spliced(text, {span: parts[old] for span, old in zip(spans, self.order, strict=True)})

    def listed(self, value: Any, choices: Sequence[str]) -> Any:
        """A list with an entry for each option, or a text of lettered options, in the new order; letters stay."""
        if isinstance(value, str):
            spans = _options(value, choices)
            return value if spans is None else self.spliced(value, spans)
        letters = list(LETTERS[: len(self.order)])
        if not isinstance(value, list | tuple) or len(value) != len(letters) or [*map(str, value)] == letters:
            return value
        return [value[old] for old in self.order]

    def answer(self, value: Any) -> Any:
        """A right answer afterwards; None where it cannot be known."""
        if isinstance(value, list | tuple):
            each = [self.answer(one) for one in value]
            return None if None in each else each
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(value)
        if not isinstance(value, str) or value.strip() in self.texts:
            return value
        if value.strip().isdecimal():
            number = self._number(int(value))
            return None if number is None else value if number == int(value) else str(number)
        return self._letter(value)

    def _number(self, value: int) -> int | None:
        """The number of the right option, from 0 or 1; another number as it is. None where its text has the number."""
        if value - self.right not in (0, 1):
            return value
        if str(value) in re.findall(r"\d+", self.texts[self.right]):
            return None
        return self.new + value - self.right

    def _letter(self, value: str) -> str | None:
        """The new letter of an option; None where the value names a letter otherwise than at its beginning."""
        match = re.fullmatch(r"(\s*\(?)([A-Za-z])([.):]*)(?:(\s+)(.*))?", value, re.DOTALL)
        if match and match[2].upper() in self.renamed and (match[5] is None or match[5].strip() in self.texts):
            new = self.renamed[match[2].upper()]
            return value[: match.start(2)] + (new if match[2].isupper() else new.lower()) + value[match.end(2) :]
        named = re.compile(rf"(?<!\w)[{''.join(self.renamed)}](?!\w)")
        return None if named.search(value) else value


def _options(text: str, choices: Sequence[str]) -> list[Span] | None:
    """The place of each option's text in the last list of options; None where not all of them are there in order."""
    found: list[Span] = []
    place = 0
    for letter, choice in zip(LETTERS, choices, strict=False):
        lettered = all(one == other for one, other in zip(choices, LETTERS, strict=False))
        body = r"[^\n]*\S" if lettered else re.escape(choice.strip())
        pattern = re.compile(rf"^[ \t]*\(?{letter}[.):][ \t]*({body})", re.MULTILINE)
        matches = [match for match in pattern.finditer(text) if match.start() >= place]
        if not matches or len(choices) > len(LETTERS):
            return None
        match = matches[-1 if not found else 0]
        found.append(match.span(1))
        place = match.end()
    return found or None
