"""Changes of the surface of a question: case, spaces, punctuation."""

from itertools import pairwise
from typing import Literal

from kd.evaluation.variants.editable import question, some, spliced, stream, with_question, words
from kd.evaluation.variants.typos import Rate
from kd.types import Record

VERSION = 1
MARKS = ",.;:!?"


def letter_case(record: Record, seed: int, *, case: Literal["lower", "upper"]) -> Record | None:
    """The question in lower or upper case, but for words of the answer and single letters.

    case: of the words.
    """
    text = question(record)
    change = str.lower if case == "lower" else str.upper
    return with_question(record, spliced(text, {(start, end): change(text[start:end]) for start, end in words(record)}))


def spaces(record: Record, seed: int, *, rate: Rate = 0.2) -> Record | None:
    """Two spaces in place of one between some words of the question, where both may be changed.

    rate: share of these spaces; above 0, at least one.
    """
    text, own = question(record), words(record)
    gaps = [(end, start) for (_, end), (start, _) in pairwise(own) if text[end:start] == " "]
    chosen = some(gaps, rate, stream(record, seed, "spaces"))
    return with_question(record, spliced(text, dict.fromkeys(chosen, "  ")))


def punctuation(record: Record, seed: int, *, rate: Rate = 1.0) -> Record | None:
    """The question without some marks (, . ; : ! ?) at the end of words that may be changed.

    rate: share of these marks; above 0, at least one.
    """
    text = question(record)
    marks = [(end, end + 1) for _, end in words(record) if text[end : end + 1] in tuple(MARKS) and _ends(text, end + 1)]
    chosen = some(marks, rate, stream(record, seed, "punctuation"))
    return with_question(record, spliced(text, dict.fromkeys(chosen, "")))


def _ends(text: str, place: int) -> bool:
    return place == len(text) or text[place].isspace()
