"""No alignment: the teacher is read in its own tokens only."""

from transformers import PreTrainedTokenizerBase

from kd.types import ModelOutput


class Unaligned:
    """For objectives that need no teacher in the student's coordinates (sft; text and transport objectives)."""

    provides: frozenset[str] = frozenset()

    def check(self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
        """Any two tokenizers will do."""

    def __call__(self, native: ModelOutput) -> ModelOutput:
        """Nothing survives in the student's coordinates."""
        return ModelOutput()
