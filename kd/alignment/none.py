"""No alignment: the teacher is read in its own tokens only."""

from transformers import PreTrainedTokenizerBase

from kd.alignment.byte_spans import columns
from kd.types import Batch, ModelOutput, Pairs


class Unaligned:
    """For objectives that need no teacher in the student's coordinates (sft; text and transport objectives)."""

    provides: frozenset[str] = frozenset({"pairs"})
    translates = False
    summary = ""

    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Any two tokenizers will do."""

    def __call__(self, native: ModelOutput, batch: Batch) -> ModelOutput:
        """Nothing survives in the student's coordinates."""
        return ModelOutput()

    def pairs(self, batch: Batch) -> Pairs:
        """The k-th token of a response beside the k-th, cut to the shorter of the two (ULD, arXiv 2402.12030)."""
        lengths = [s.mask.sum(1).tolist() for s in (batch.student, batch.teacher)]
        rows, first = list[tuple[int, int, int]](), [0, 0]
        for sequence, (ours, theirs) in enumerate(zip(*lengths, strict=True)):
            rows += [(first[0] + k, first[1] + k, sequence) for k in range(min(ours, theirs))]
            first = [first[0] + ours, first[1] + theirs]
        return Pairs(*columns(rows, 3, batch))
