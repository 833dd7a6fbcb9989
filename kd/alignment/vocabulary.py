"""Which id of the student each id of the teacher stands for."""

import torch
from jaxtyping import Int
from torch import Tensor

from kd.alignment.token_bytes import TokenBytes

NOWHERE = -1  # of an id that has no counterpart


def same_bytes(student: TokenBytes, teacher: TokenBytes) -> Int[Tensor, " U"]:
    """The student's id that writes the same bytes as each of the teacher's ids, or `NOWHERE`.

    End tokens stand for each other. A special token and a plain one never do, nor do two that are spelled alike but
    are special on one side only. Of several ids with the same bytes, those that are spelled alike go together.
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


def nearest(student: TokenBytes, teacher: TokenBytes, *, shortest: int = 3) -> Int[Tensor, " U"]:
    """`same_bytes`, and for the rest the id whose spelling is one edit away (the lowest of them), or `NOWHERE`.

    MinED (arXiv 2401.10491, FuseLLM) takes the nearest spelling at any distance; what shares less is left out here and
    counted as lost, for "qx" is no sensible counterpart of "the". Words of fewer than `shortest` bytes have no near
    ones.
    """
    found = same_bytes(student, teacher)
    missing = [i for i in (found == NOWHERE).nonzero()[:, 0].tolist() if _is_word(teacher, i, shortest)]
    if missing:
        without: dict[tuple[int, bytes], int] = {}
        for j in reversed(range(len(student.pieces))):
            if _is_word(student, j, shortest - 1):
                without |= dict.fromkeys(_one_less(student.pieces[j] or b""), j)
        for i in missing:
            found[i] = _one_edit_away(teacher.pieces[i] or b"", student, without)
    return found


def _one_edit_away(piece: bytes, student: TokenBytes, without: dict[tuple[int, bytes], int]) -> int:
    """The lowest plain id with one byte less, one byte more, or another byte in one place."""
    less = _one_less(piece)
    near = {student.ids.get(rest, NOWHERE) for _, rest in less}
    near |= {without.get((k, piece), NOWHERE) for k in range(len(piece) + 1)}
    near |= {without[key] for key in less if key in without and len(student.pieces[without[key]] or b"") == len(piece)}
    return min((j for j in near if j != NOWHERE and j not in student.special), default=NOWHERE)


def _one_less(piece: bytes) -> set[tuple[int, bytes]]:
    """The words that are left when one byte is taken away, and where it stood."""
    return {(k, piece[:k] + piece[k + 1 :]) for k in range(len(piece))}


def _is_word(tokens: TokenBytes, i: int, shortest: int) -> bool:
    return i not in tokens.special and len(tokens.pieces[i] or b"") >= shortest
