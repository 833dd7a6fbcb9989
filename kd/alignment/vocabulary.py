"""The student's id for each id of the teacher."""

from functools import lru_cache
from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from kd.alignment.edit_scan import LONGEST, Words
from kd.alignment.token_bytes import TokenBytes

NOWHERE = -1  # the counterpart of an id that has none
Distance = Annotated[int, Field(ge=0)] | None


def same_bytes(student: TokenBytes, teacher: TokenBytes) -> Int[Tensor, " U"]:
    """The student's id with the same bytes as each of the teacher's ids, or `NOWHERE`.

    End tokens are counterparts. A special token and a plain one never are, nor are two that are spelled alike but are
    special on one side only. Of several ids with the same bytes, those that are spelled alike are counterparts.
    """
    spelled = {word: i for i, word in enumerate(student.spelled) if word is not None}
    taken: set[int] = set()
    found = [NOWHERE] * len(teacher.pieces)
    for i, word in enumerate(teacher.spelled):  # first those that are spelled alike
        j = spelled.get(word or "")
        if j is not None and student.pieces[j] == teacher.pieces[i] is not None and _alike(student, j, teacher, i):
            found[i] = j
            taken.add(j)
    for i in sorted(range(len(found)), key=teacher.preference):
        piece = teacher.pieces[i]
        j = student.ids.get(piece) if piece and found[i] == NOWHERE else None
        if j is not None and j not in taken and _alike(student, j, teacher, i):
            found[i] = j
            taken.add(j)
    return torch.tensor(found)


def _alike(student: TokenBytes, ours: int, teacher: TokenBytes, theirs: int) -> bool:
    return (ours in student.special) == (theirs in teacher.special)


@lru_cache(maxsize=4)  # called before weights are loaded, and when a run is built; in a sweep for each job
def nearest(
    student: TokenBytes, teacher: TokenBytes, *, distance: Distance = 1, shortest: int = 3
) -> Int[Tensor, " U"]:
    """`same_bytes`, and for the rest the plain id of the nearest spelling (the lowest of them), or `NOWHERE`.

    distance: the most edits; None: no bound, as in MinED (arXiv 2401.10491, FuseLLM). By default an id farther than
        one edit is not mapped, and its probability is lost: "qx" is no sensible counterpart of "the".
    shortest: words of fewer bytes have no near ones, nor have special ids, nor words of more than `edit_scan.LONGEST`
        bytes any beyond one edit.

    Words one edit away are looked up; beyond, each remaining word is compared at once with every word of the student
    whose length allows it: one or two milliseconds a word, a minute or two for 50 000 of them beside 50 000.
    """
    found = same_bytes(student, teacher)
    missing = [i for i in (found == NOWHERE).nonzero()[:, 0].tolist() if _is_word(teacher, i, shortest)]
    if missing and distance != 0:
        without: dict[tuple[int, bytes], int] = {}
        for j in reversed(range(len(student.pieces))):
            if _is_word(student, j, shortest - 1):
                without |= dict.fromkeys(_one_less(student.pieces[j] or b""), j)
        for i in missing:
            found[i] = _one_edit_away(teacher.pieces[i] or b"", student, without)
    if distance is None or distance > 1:
        words = Words({word: j for word, j in student.ids.items() if _is_word(student, j, shortest - 1)})
        for i in missing:
            piece = teacher.pieces[i] or b""
            if found[i] == NOWHERE and len(piece) <= LONGEST:
                found[i] = words.nearest(piece, distance, otherwise=NOWHERE)
    return found


def _one_edit_away(piece: bytes, student: TokenBytes, without: dict[tuple[int, bytes], int]) -> int:
    """The lowest plain id with one byte less, one byte more, or another byte in one place."""
    less = _one_less(piece)
    near = {student.ids.get(rest, NOWHERE) for _, rest in less}
    near |= {without.get((k, piece), NOWHERE) for k in range(len(piece) + 1)}
    near |= {without[key] for key in less if key in without and len(student.pieces[without[key]] or b"") == len(piece)}
    return min((j for j in near if j != NOWHERE and j not in student.special), default=NOWHERE)


def _one_less(piece: bytes) -> set[tuple[int, bytes]]:
    """The words without one byte, and the place of that byte."""
    return {(k, piece[:k] + piece[k + 1 :]) for k in range(len(piece))}


def _is_word(tokens: TokenBytes, i: int, shortest: int) -> bool:
    return i not in tokens.special and len(tokens.pieces[i] or b"") >= shortest
