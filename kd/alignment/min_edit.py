"""Alignment by minimum edit distance: of positions, by dynamic time warping; of ids, by the nearest spelling."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kd.alignment.byte_spans import columns, response_ids, with_ends, written_here
from kd.alignment.spans import Outside, SpanAlignment
from kd.alignment.vocabulary import Distance, nearest
from kd.types import Batch, Pairs


class MinEdit(SpanAlignment):
    """MinED of FuseLLM (arXiv 2401.10491): sequences warped onto each other at the least summed edit distance of their
    tokens, ids mapped to themselves or to the nearest spelling.

    A row is compared where the warping pairs one token with one token and these are counterparts; FuseLLM takes the
    label alone elsewhere, as a further term `sft` does here. The probabilities of several of the teacher's ids with one
    counterpart are added up. Distances are between bytes.

    Args:
        outside: use of the teacher's probability on ids that the student lacks, as in `SpanAlignment`.
        distance: the most edits between an id's spelling and its counterpart's; ids farther from all are not mapped,
            and their probability is lost. None: no bound, as in FuseLLM (`vocabulary.nearest`).
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "pairs", "id_map"})
    _warped: tuple[Batch, Pairs] | None = None  # the last batch's: warping is slow, and needed more than once

    def __init__(self, *, outside: Outside = "renormalise", distance: Distance = 1):
        super().__init__(outside=outside)
        self.distance = distance

    def pairs(self, batch: Batch) -> Pairs:
        """The rows that the warping pairs, one token to one token."""
        if self._warped is None or self._warped[0] is not batch:
            self._warped = batch, self._pairs(batch)
        return self._warped[1]

    def _pairs(self, batch: Batch) -> Pairs:
        rows, first = list[tuple[int, int, int]](), [0, 0]
        responses = zip(response_ids(batch.student), response_ids(batch.teacher), written_here(batch), strict=True)
        for sequence, (ours, theirs, silent) in enumerate(responses):
            path = warped(self.student.of(ours, silent=silent), self.teacher.of(theirs, silent=silent))
            rows += [(first[0] + i, first[1] + j, sequence) for i, j in one_to_one(path)]
            first = [first[0] + len(ours), first[1] + len(theirs)]
        return with_ends(Pairs(*columns(rows, 3, batch)), batch, self.student.end, self.teacher.end)

    def _aligned(self, batch: Batch, n: int) -> Bool[Tensor, " n"]:
        rows = self.pairs(batch).student
        return torch.zeros(n, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)

    def _beside(self, batch: Batch) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        pairs = self.pairs(batch)
        return pairs.student, pairs.teacher

    def _mapped(self) -> Int[Tensor, " U"]:
        return nearest(self.student, self.teacher, distance=self.distance)


def warped(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[tuple[int, int]]:
    """The path from (0, 0) to the last tokens whose summed edit distance is least; diagonal steps first."""
    if not student or not teacher:
        return []
    cost = [[0.0] * len(teacher) for _ in student]
    for i, ours in enumerate(student):
        for j, theirs in enumerate(teacher):
            before = [cost[a][b] for a, b in _steps(i, j)]
            cost[i][j] = edit_distance(ours, theirs) + min(before, default=0.0)
    path = [(len(student) - 1, len(teacher) - 1)]
    while steps := _steps(*path[-1]):
        path.append(min(steps, key=lambda at: cost[at[0]][at[1]]))
    return path[::-1]


def one_to_one(path: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of a path whose tokens are in no other pair."""
    ours, theirs = Counter(i for i, _ in path), Counter(j for _, j in path)
    return [(i, j) for i, j in path if ours[i] == theirs[j] == 1]


@lru_cache(maxsize=1 << 16)
def edit_distance(a: bytes, b: bytes) -> int:
    """Insertions, deletions and replacements of bytes that make `b` of `a` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _steps(i: int, j: int) -> list[tuple[int, int]]:
    return [(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
