"""Alignment by bytes, for tokenizers that cut one text differently."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kd.alignment import Alignment
from kd.alignment.byte_spans import first_rows, spans_of, with_ends
from kd.alignment.token_bytes import token_bytes
from kd.alignment.vocabulary import NOWHERE, same_bytes
from kd.kernels.logits import Logits
from kd.kernels.mapped import MappedLogits
from kd.kernels.ranges import spread
from kd.types import Batch, Boundaries, ModelOutput, Pairs, Spans

Outside = Literal["renormalise", "spread"]


class SpanAlignment(Alignment):
    """Minimal spans: the shortest ranges of a response with boundaries of both tokenizers at both ends, by bytes.

    In the student's coordinates the teacher has
    logits:   at spans of one token on both sides, if these are counterparts. There, both have read the same text,
              and both have one id for the next piece. Ids are mapped by their bytes.
    logprobs: at all spans. The teacher's log-likelihood of a span is shared evenly among the student's tokens of it,
              so that sums over spans are the teacher's. Rows in no span have 0: terms on whole responses are refused.
    `aligned_mask` are the rows of the former where logits are required, else those of the latter.

    The prompt takes no part: templates, special tokens and a beginning token may differ.

    Args:
        outside: use of the teacher's probability on ids that the student does not have. `renormalise`: the teacher is
            conditioned on the shared ids. `spread`: it falls evenly on all of the student's ids. It is logged as
            `lost_teacher_mass`, a share per compared row, in any case.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits", "logprobs", "spans", "pairs", "id_map", "boundaries"})
    translates: ClassVar[bool] = True  # rows and ids may differ

    def __init__(self, *, outside: Outside = "renormalise"):
        self.outside, self.summary = outside, ""
        self._last: tuple[Batch, Spans] | None = None
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Reads the two tokenizers. `ids`: the numbers of ids of the student's and the teacher's heads.

        Raises ValueError for tokenizers that share no token, or whose tokens are no pieces of a text's bytes.
        """
        self.student, self.teacher = token_bytes(student), token_bytes(teacher)
        self.size, size = ids or (len(self.student.pieces), len(self.teacher.pieces))
        self.map = self._mapped()[:size]
        self.map = self.map.masked_fill(self.map >= self.size, NOWHERE)
        shared = int((self.map != NOWHERE).sum())
        if not shared:
            raise ValueError("student and teacher share no token, so there is nothing to compare; take alignment=none")
        self.summary = f"{shared} of the teacher's {size} ids have a counterpart among the student's {self.size}"

    def __call__(self, native: ModelOutput, batch: Batch) -> ModelOutput:
        """The teacher's logits and log-probabilities in the student's coordinates."""
        aligned, where = ModelOutput(), self.where(batch)
        if native.logprobs is not None and "logprobs" in self.provides:
            aligned.logprobs = _shared_out(native.logprobs[batch.teacher.mask], self.spans(batch), batch)
        if native.logits is not None:
            if not isinstance(native.logits, Logits):
                raise ValueError(
                    f"alignment={type(self).__name__} maps whole distributions, but this teacher keeps the most "
                    "probable ids only; take a teacher that is read whole, or alignment=same"
                )
            ids, spread = self.map.to(where.device), self.outside == "spread"
            aligned.logits = MappedLogits(native.logits, ids, self.size, where, spread, self._lost)
        compared = aligned.logits is not None or aligned.logprobs is None
        beside = self._aligned(batch, len(where))
        aligned.aligned_mask = where >= 0 if compared else beside
        self._count("aligned_tokens", beside.sum(), len(where))
        self._count("matched_tokens", (where >= 0).sum(), len(where))
        return aligned

    def where(self, batch: Batch) -> Int[Tensor, " n"]:
        """The teacher's row for each of the student's rows; -1 where none is comparable."""
        ours, theirs = self._beside(batch)
        labels = [s.labels[s.mask] for s in (batch.student, batch.teacher)]
        meant = self.id_map(batch)[labels[1][theirs]] == labels[0][ours]
        where = ours.new_full((len(labels[0]),), -1)
        where[ours[meant]] = theirs[meant]
        return where

    def spans(self, batch: Batch) -> Spans:
        """The minimal spans of every response."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, spans_of(batch, self.student, self.teacher)
        return self._last[1]

    def pairs(self, batch: Batch) -> Pairs:
        """The rows at which the spans begin."""
        return with_ends(first_rows(self.spans(batch)), batch, self.student.end, self.teacher.end)

    def id_map(self, batch: Batch) -> Int[Tensor, " U"]:
        """The student's id of each of the teacher's ids, -1 where there is none."""
        return self.map.to(batch.student.mask.device)

    def shared_ids(self) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
        """Ids of the student, and their counterparts of the teacher."""
        theirs = (self.map != NOWHERE).nonzero()[:, 0]
        return self.map[theirs], theirs

    def boundaries(self, batch: Batch) -> Boundaries:
        """The boundaries of both tokenizers, up to the ids of the heads."""
        sides = ((self.student, self.size), (self.teacher, len(self.map)))
        return Boundaries(*(tokens.boundary[:size].to(batch.student.mask.device) for tokens, size in sides))

    def take_report(self) -> dict[str, tuple[float, float]]:
        """Shares of the student's response tokens: in a span (`aligned_tokens`), and with one token of the teacher as
        counterpart, where logits are compared (`matched_tokens`). Per compared row: `lost_teacher_mass`.
        """
        report, self._sums = self._sums, {}
        return {name: (float(total), float(count)) for name, (total, count) in report.items()}

    def forbidden(self) -> int:
        """The number of the student's ids without probability of the teacher: 0, where lost mass falls on them all."""
        found = set(self.map.tolist())
        return 0 if self.outside == "spread" and NOWHERE in found else self.size - len(found - {NOWHERE})

    def _aligned(self, batch: Batch, n: int) -> Bool[Tensor, " n"]:
        return _inside(self.spans(batch), n)

    def _beside(self, batch: Batch) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """The rows of both sides whose spans have one token each."""
        spans = self.spans(batch)
        single = (spans.end - spans.start == 1) & (spans.teacher_end - spans.teacher_start == 1)
        return spans.start[single], spans.teacher_start[single]

    def _mapped(self) -> Int[Tensor, " U"]:
        return same_bytes(self.student, self.teacher)

    def _lost(self, mass: Tensor, rows: int) -> None:
        self._count("lost_teacher_mass", mass, rows)

    def _count(self, name: str, total: Tensor, count: int) -> None:
        before = self._sums.get(name, (0.0, 0))
        self._sums[name] = (before[0] + total, before[1] + count)


def _inside(spans: Spans, n: int) -> Tensor:
    """A mask `[n]` of the rows that belong to a span."""
    steps = torch.zeros(n + 1, dtype=torch.long, device=spans.start.device)
    steps.index_add_(0, spans.start, torch.ones_like(spans.start))
    steps.index_add_(0, spans.end, -torch.ones_like(spans.end))
    return steps.cumsum(0)[:n] > 0


def _shared_out(logprobs: Float[Tensor, " m"], spans: Spans, batch: Batch) -> Float[Tensor, "B T"]:
    """The sum over the teacher's tokens of each span, divided among the student's tokens of it; 0 elsewhere."""
    mask = batch.student.mask
    total = torch.cat([logprobs.new_zeros(1, dtype=torch.float64), logprobs.double().cumsum(0)])  # a difference of sums
    length = spans.end - spans.start
    share = ((total[spans.teacher_end] - total[spans.teacher_start]) / length).to(logprobs.dtype)
    rows = logprobs.new_zeros(int(mask.sum()))
    span, at = spread(spans.start, spans.end)
    rows[at] = share[span]
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, rows)
