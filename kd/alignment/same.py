"""Teacher and student share one tokenizer."""

from dataclasses import replace
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, arange, tensor
from transformers import PreTrainedTokenizerBase

from kd.alignment import Alignment
from kd.alignment.byte_spans import first_rows, identity_spans, with_ends
from kd.alignment.token_bytes import token_bytes
from kd.data.chat_template import end_id
from kd.data.sequences import same_text
from kd.types import Batch, Boundaries, ModelOutput, Pairs, Spans


class Same(Alignment):
    """The identity: positions and ids are the same."""

    provides: ClassVar[frozenset[str]] = frozenset(
        {"logits", "logprobs", "mean_logprobs", "spans", "pairs", "id_map", "boundaries"}
        | {"hidden", "attentions", "qkv", "embeddings", "head"}  # of the same positions, in the teacher's width
    )
    translates: ClassVar[bool] = False  # rows and ids are the same

    def check(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[int, int] | None = None
    ) -> None:
        """Raises ValueError if an id means different tokens, or a conversation is tokenized differently."""
        ours, theirs = student.get_vocab(), teacher.get_vocab()
        conflicts = [token for token, i in ours.items() if theirs.get(token, i) != i]
        if conflicts or len(ours.keys() & theirs.keys()) < min(len(ours), len(theirs)):
            example = conflicts[0] if conflicts else next(iter(ours.keys() ^ theirs.keys()))
            raise ValueError(
                f"alignment=same needs one tokenizer, but student and teacher differ in {example!r} "
                f"({len(ours)} and {len(theirs)} tokens); take alignment=spans, a student "
                "made from the teacher, or a teacher that shares its tokenizer"
            )
        if not same_text(student, teacher):
            raise ValueError(
                "alignment=same needs one text, but student and teacher tokenize a conversation differently (chat "
                "template, end token or images); give the student the teacher's tokenizer folder, or take "
                "alignment=shared_vocabulary, which compares responses only"
            )
        if ids is not None and ids[0] != ids[1]:
            raise ValueError(
                f"alignment=same needs one vocabulary, but the student has {ids[0]} ids and the teacher {ids[1]}; "
                "take alignment=shared_vocabulary"
            )
        self.size = len(theirs) if ids is None else ids[1]
        self.tokenizer, self.used = student, sorted({*ours.values()} & {*theirs.values()})

    def __call__(self, native: ModelOutput, batch: Batch) -> ModelOutput:
        """The teacher's output in the student's coordinates.

        Where the teacher has read the same response after another prompt, the loss rows are the same but the positions
        differ: its outputs by position are left out then.
        """
        if batch.teacher.tokens is batch.student.tokens:
            return native
        logprobs = None if native.logprobs is None else repositioned(native.logprobs, batch)
        return replace(native, logprobs=logprobs, hidden=None, attentions=None, qkv=None)

    def spans(self, batch: Batch) -> Spans:
        """Spans of one row each."""
        return identity_spans(batch)

    def pairs(self, batch: Batch) -> Pairs:
        """Pairs of each row with itself."""
        end = end_id(self.tokenizer)
        return with_ends(first_rows(identity_spans(batch)), batch, end, end)

    def id_map(self, batch: Batch) -> Int[Tensor, " U"]:
        """The map of each id to itself."""
        return arange(self.size, device=batch.student.mask.device)

    def shared_ids(self) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
        """The ids in use, twice."""
        ids = tensor([i for i in self.used if i < self.size])
        return ids, ids

    def boundaries(self, batch: Batch) -> Boundaries:
        """The boundaries of the tokenizer. Raises ValueError where its tokens are no pieces of a text's bytes."""
        ids = token_bytes(self.tokenizer).boundary[: self.size].to(batch.student.mask.device)
        return Boundaries(ids, ids)


def repositioned(values: Float[Tensor, "B t"], batch: Batch) -> Float[Tensor, "B T"]:
    """The teacher's values moved from its loss rows to the student's, of the same response tokens; 0 elsewhere."""
    mask = batch.student.mask
    return values.new_zeros(mask.shape).masked_scatter(mask, values[batch.teacher.mask])
