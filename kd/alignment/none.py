"""No alignment: the teacher is read in its own tokens only."""

from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from kd.alignment import Alignment
from kd.alignment.byte_spans import columns, with_ends
from kd.data.chat_template import end_id
from kd.types import Batch, ModelOutput, Pairs


class Unaligned(Alignment):
    """The absence of an alignment, for objectives without a teacher in the student's coordinates (sft, transport)."""

    provides: ClassVar[frozenset[str]] = frozenset({"pairs"})
    translates: ClassVar[bool] = False
    ends = (-1, -1)  # the end tokens of student and teacher, set by `check`
    _paired = (0, 0)  # of the student's response tokens, since the last report: those in a pair, and all

    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Accepts any two tokenizers."""
        self.ends = end_id(student), end_id(teacher)

    def __call__(self, native: ModelOutput, batch: Batch) -> ModelOutput:
        """An empty output: no field is in the student's coordinates."""
        return ModelOutput()

    def pairs(self, batch: Batch) -> Pairs:
        """Pairs of the k-th tokens of both, up to the end of the shorter response (ULD, arXiv 2402.12030)."""
        lengths = [s.mask.sum(1).tolist() for s in (batch.student, batch.teacher)]
        rows, first = list[tuple[int, int, int]](), [0, 0]
        for sequence, (ours, theirs) in enumerate(zip(*lengths, strict=True)):
            rows += [(first[0] + k, first[1] + k, sequence) for k in range(min(ours, theirs))]
            first = [first[0] + ours, first[1] + theirs]
        self._paired = self._paired[0] + len(rows), self._paired[1] + first[0]
        return with_ends(Pairs(*columns(rows, 3, batch)), batch, *self.ends)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The share of the student's response tokens in a pair (`aligned_tokens`), where pairs were made."""
        (paired, tokens), self._paired = self._paired, (0, 0)
        return {"aligned_tokens": (float(paired), float(tokens))} if tokens else {}
