"""An irrelevant sentence before the question (Shi et al. 2023, arXiv 2302.00093; the distractors of AdvGLUE)."""

from collections.abc import Sequence

from kd.evaluation.variants.editable import question, stream, with_question
from kd.types import Record

VERSION = 1


def distraction(record: Record, seed: int, *, sentences: Sequence[str]) -> Record | None:
    """The question after one of the sentences, which neither counts nor names anything in it.

    sentences: of which each record has one, drawn by its id; one that shares a word with the answer is not taken.
    """
    if not (text := question(record)):
        return None
    return with_question(record, f"{stream(record, seed, 'distraction').choice([*sentences])} {text}")
