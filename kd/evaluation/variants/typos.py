"""Slips of the keyboard, as in the perturbations of AdvGLUE (Wang et al. 2021, arXiv 2111.02840) and PromptBench."""

from random import Random
from typing import Annotated

from pydantic import Field, PositiveInt

from kd.evaluation.variants.editable import question, some, spliced, stream, with_question, words
from kd.types import Record

VERSION = 1
Rate = Annotated[float | int, Field(ge=0, le=1)]
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    letter: [
        ROWS[other][place]
        for other, places in ((row, (i - 1, i + 1)), (row - 1, (i, i + 1)), (row + 1, (i - 1, i)))
        if 0 <= other < len(ROWS)
        for place in places
        if 0 <= place < len(ROWS[other])
    ]
    for row, letters in enumerate(ROWS)
    for i, letter in enumerate(letters)
}  # of a QWERTY keyboard


def typos(record: Record, seed: int, *, rate: Rate = 0.1, least: PositiveInt = 4) -> Record | None:
    """One slip in each of some words of the question: a neighbouring key, two letters swapped, or one dropped.

    Never in the first letter, in numbers, or in words of the answer (`kd.evaluation.variants.editable`).

    rate: share of the words that may be changed; above 0, at least one is.
    least: letters of a word that may be changed.
    """
    text, random = question(record), stream(record, seed, "typos")
    slipped = {
        (start, end): slip(text[start:end], random) for start, end in some(words(record, least=least), rate, random)
    }
    return with_question(record, spliced(text, slipped)) if slipped or not rate else None


def slip(word: str, random: Random) -> str:
    """The word with one slip after its first letter."""
    inner = range(1, len(word))
    ways = [word[:i] + word[i + 1 :] for i in inner]
    ways += [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1] if word[i] != word[i + 1]]
    for i in inner:
        near = NEIGHBOURS.get(word[i].lower(), [])
        ways += [word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :] for key in near]
    return random.choice(ways)
