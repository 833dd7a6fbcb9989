"""The part of a prompt that may be changed while its right answer stays: words, but not those that the answer is of.

Left as they are: numbers, code, quoted texts, words of responses, references and choices, and of short texts in `meta`,
which hold what a procedural problem was drawn from.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from kd.seeding import derive
from kd.types import Record

WORD = re.compile(r"(?<![\w'’-])[A-Za-zÀ-ÖØ-öø-ÿ]{2,}(?![\w'’-])")
VERBATIM = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\"[^\"\n]*\"|“[^”\n]*”", re.DOTALL)
LABELS = ("references", "answer", "choices")  # of meta, protected however long they are
SHORT = 3  # words of another text of meta that is protected
Span = tuple[int, int]


def question(record: Record) -> str:
    """The text of the last message of the user, the one that variants change; empty where there is none."""
    place = _place(record)
    return "" if place is None else str(record.prompt[place]["content"])


def with_question(record: Record, text: str) -> Record:
    """The record with another text in the last message of the user."""
    place = _place(record)
    if place is None or text == question(record):
        return record
    message = {**record.prompt[place], "content": text}
    return replace(record, prompt=(*record.prompt[:place], message, *record.prompt[place + 1 :]))


def words(record: Record, *, least: int = 2) -> list[Span]:
    """Start and end of each word of the question that may be changed, of at least so many letters."""
    text, kept = question(record), protected(record)
    verbatim = [match.span() for match in VERBATIM.finditer(text)]
    return [
        match.span()
        for match in WORD.finditer(text)
        if len(match[0]) >= least
        and match[0].casefold() not in kept
        and not any(start <= match.start() < end for start, end in verbatim)
    ]


def protected(record: Record) -> frozenset[str]:
    """The words, case folded, that no variant changes."""
    return frozenset(word for text in answer_texts(record) for word in re.findall(r"\w+", text.casefold()))


def answer_texts(record: Record) -> Iterator[str]:
    """The texts that are, or may determine, the right answer."""
    yield from (response.text for response in record.responses)
    for key, value in record.meta.items():
        yield from (text for text in _strings(value) if key in LABELS or len(text.split()) <= SHORT)


def some(spans: list[Span], rate: float | int, random: Random) -> list[Span]:
    """That share of the spans, in their order: none at rate 0, else at least one."""
    count = max(1, round(rate * len(spans))) if rate > 0 and spans else 0
    return sorted(random.sample(spans, count))


def stream(record: Record, seed: int, name: str) -> Random:
    """The random numbers of a variant for one record, the same on every machine."""
    return Random(derive(seed, "variant", name, record.id))


def spliced(text: str, parts: Mapping[Span, str]) -> str:
    """The text with each span replaced."""
    for start, end in sorted(parts, reverse=True):
        text = text[:start] + parts[start, end] + text[end:]
    return text


def _place(record: Record) -> int | None:
    return next((i for i in reversed(range(len(record.prompt))) if record.prompt[i]["role"] == "user"), None)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _strings(child)
