"""Teacher and student share one tokenizer."""

from transformers import PreTrainedTokenizerBase

from kd.sequences import same_text
from kd.types import ModelOutput


class Same:
    """Nothing to translate: positions and ids are the same."""

    provides = frozenset({"logits", "logprobs", "hidden"})

    def check(self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
        """Raises ValueError if an id means different tokens, or the two write a conversation differently."""
        ours, theirs = student.get_vocab(), teacher.get_vocab()
        conflicts = [token for token, i in ours.items() if theirs.get(token, i) != i]
        if conflicts or len(ours.keys() & theirs.keys()) < min(len(ours), len(theirs)):
            example = conflicts[0] if conflicts else next(iter(ours.keys() ^ theirs.keys()))
            raise ValueError(
                f"alignment=same needs one tokenizer, but student and teacher disagree on {example!r} "
                f"({len(ours)} and {len(theirs)} tokens); take a student "
                "made from the teacher, or a teacher that shares its tokenizer"
            )
        if not same_text(student, teacher):
            raise ValueError(
                "alignment=same needs one text, but student and teacher write a conversation in different tokens (chat "
                "template or end token); give the student the teacher's tokenizer folder"
            )

    def __call__(self, native: ModelOutput) -> ModelOutput:
        """The teacher's output in the student's coordinates."""
        return native
