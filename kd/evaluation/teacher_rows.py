"""The teacher's last hidden states of the loss rows: exact, small beside logits, and read once for a whole sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd.evaluation.cache import entry, once
from kd.evaluation.progress import progress_bar
from kd.evaluation.reading import read, reading
from kd.evaluation.references import content, references, row_slices
from kd.kernels.logits import HeadLogits
from kd.models.language_model import LanguageModel
from kd.sequences import Encoder
from kd.types import Head, Record


@dataclass(frozen=True)
class TeacherRows:
    """`hidden[where[id]]` are the states from which the teacher predicts the reference of record `id`."""

    hidden: Float[Tensor, "n D"]
    head: Head
    where: Mapping[str, slice]

    def of(self, records: Sequence[Record]) -> HeadLogits:
        """The teacher's logits of these records' loss rows, in their order, not yet materialised."""
        hidden = torch.cat([self.hidden[self.where[record.id]] for record in records])
        return HeadLogits(hidden.to(self.head.weight.device), self.head)


def teacher_rows(teacher: LanguageModel, identity: str, encoder: Encoder, records: Sequence[Record]) -> TeacherRows:
    """Of the records' references: from the cache, or by one forward pass, which is then cached.

    The head is the teacher's own, as loaded. `identity` names the teacher's content.

    Raises:
        ValueError: the teacher writes text in other ids than the student, so that their rows are not the same
            positions.
    """
    if encoder.teacher is not None:
        raise ValueError("teacher and student have different tokenizers; their rows cannot be compared one by one")
    items = references(encoder, records)
    with torch.no_grad():
        head = teacher.head()

    def write(path: Path) -> None:
        save_file({"hidden": _hidden(teacher, encoder, items)}, path)

    key = {"teacher": identity, "dtype": str(teacher.network.dtype), "items": content(encoder, items)}
    path = once(entry("teacher_rows", key, ".safetensors"), write)
    return TeacherRows(load_file(path)["hidden"], head, row_slices(encoder, items))


def _hidden(teacher: LanguageModel, encoder: Encoder, items: Sequence[Record]) -> Float[Tensor, "n D"]:
    """Joined in the order of `items`."""
    states: dict[str, Tensor] = {}
    with reading(teacher), progress_bar("teacher reads references", len(items)) as advance:
        for batch, logits in read(teacher, encoder.batches(items)):
            pieces = logits.hidden.cpu().split(batch.student.mask.sum(1).tolist())
            states.update(zip((record.id for record in batch.records), pieces, strict=True))
            advance(len(pieces))
    return torch.cat([states[item.id] for item in items])
