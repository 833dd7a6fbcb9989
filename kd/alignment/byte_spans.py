"""Minimal spans: the shortest ranges of a text with boundaries of two tokenizations at both ends."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kd.alignment.token_bytes import END, TokenBytes
from kd.types import Batch, Pairs, Sequences, Spans

Span = tuple[int, int, int, int]  # first and one past the last token, of the student and of the teacher


def byte_spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Span]:
    """Spans at whose ends both tokenizations have a boundary at the same byte; each holds at least one token of both.

    A token without bytes belongs to the span that follows it, at the end of a text to the last. End tokens are a span
    if both texts are whole and equal. After the first byte in which the texts differ (one was truncated, or could not
    be decoded) nothing is aligned.
    """
    ends = [bool(pieces) and pieces[-1] == END for pieces in (student, teacher)]
    student, teacher = student[: len(student) - ends[0]], teacher[: len(teacher) - ends[1]]
    spans, i, j = _walk(student, teacher, _common(b"".join(student), b"".join(teacher)))
    whole = not any(student[i:]) and not any(teacher[j:])
    if whole and spans:
        spans[-1] = (spans[-1][0], len(student), spans[-1][2], len(teacher))
    if whole and all(ends) and (spans or len(student) == len(teacher) == 0):
        spans.append((len(student), len(student) + 1, len(teacher), len(teacher) + 1))
    return spans


def _walk(student: Sequence[bytes], teacher: Sequence[bytes], common: int) -> tuple[list[Span], int, int]:
    """The spans within the first `common` bytes, and the tokens of each side that they use up."""
    offsets = [list(accumulate(map(len, pieces))) for pieces in (student, teacher)]
    spans: list[Span] = []
    i = j = 0
    while i < len(student) and j < len(teacher):
        u, v = i, j
        while offsets[0][u] != offsets[1][v]:
            behind_student = offsets[0][u] < offsets[1][v]
            u, v = (u + 1, v) if behind_student else (u, v + 1)
            if u == len(student) or v == len(teacher):
                return spans, i, j
        if offsets[0][u] > common:
            break
        spans.append((i, u + 1, j, v + 1))
        i, j = u + 1, v + 1
    return spans, i, j


def _common(a: bytes, b: bytes) -> int:
    """The length of the longest common prefix."""
    if a == b:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def spans_of(batch: Batch, student: TokenBytes, teacher: TokenBytes) -> Spans:
    """The minimal spans of every response of a batch, in loss rows."""
    rows: list[tuple[int, ...]] = []
    first = [0, 0]
    responses = zip(response_ids(batch.student), response_ids(batch.teacher), written_here(batch), strict=True)
    for sequence, (ours, theirs, silent) in enumerate(responses):
        found = byte_spans(student.of(ours, silent=silent), teacher.of(theirs, silent=silent))
        rows += [(first[0] + a, first[0] + b, first[1] + c, first[1] + d, sequence) for a, b, c, d in found]
        first = [first[0] + len(ours), first[1] + len(theirs)]
    return Spans(*columns(rows, 5, batch))


def identity_spans(batch: Batch) -> Spans:
    """Spans of one row each, where student and teacher have the same tokens."""
    rows = torch.arange(int(batch.student.mask.sum()), device=batch.student.mask.device)
    return Spans(rows, rows + 1, rows, rows + 1, batch.student.mask.nonzero()[:, 0])


def first_rows(spans: Spans) -> Pairs:
    """The rows at which the spans begin, where both models have read the same text."""
    return Pairs(spans.start, spans.teacher_start, spans.sequence)


def with_ends(pairs: Pairs, batch: Batch, student: int, teacher: int) -> Pairs:
    """The pairs with a mark where a response ends; `student` and `teacher` are the two end tokens."""
    ours, theirs = (s.labels[s.mask] for s in (batch.student, batch.teacher))
    return pairs._replace(ends=(ours[pairs.student] == student) | (theirs[pairs.teacher] == teacher))


def response_ids(sequences: Sequences) -> list[list[int]]:
    """The ids of each sequence's response."""
    labels, mask = sequences.labels.tolist(), sequences.mask.tolist()
    return [[i for i, m in zip(*row, strict=True) if m] for row in zip(labels, mask, strict=True)]


def written_here(batch: Batch) -> list[bool]:
    """True for each response that the student generated in this run, whose text is decoded from its ids."""
    sources = [response.source == "student" for record in batch.records for response in record.responses]
    return sources if len(sources) == len(batch.student.mask) else [False] * len(batch.student.mask)


def columns(rows: Sequence[Sequence[int]], width: int, batch: Batch) -> list[Tensor]:
    """The columns of a table of integers, as tensors on the batch's device."""
    table = torch.tensor(rows, dtype=torch.long, device=batch.student.mask.device).view(-1, width)
    return list(table.unbind(1))
