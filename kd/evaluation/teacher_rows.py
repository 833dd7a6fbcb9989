"""The teacher's last hidden states of the loss rows: exact, small beside logits, computed once for a whole sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd.data.references import content, references, row_slices
from kd.data.sequences import Encoder
from kd.evaluation.cache import kept
from kd.evaluation.reading import read, reading
from kd.kernels.combined import RoutedLogits
from kd.kernels.logits import HeadLogits, Logits
from kd.models.digests import model_digest
from kd.models.language_model import LanguageModel
from kd.progress import part, phase
from kd.teachers.ensemble import Ensemble
from kd.types import Head, Record


@dataclass(frozen=True)
class TeacherRows:
    """`hidden[where[id]]` are the states from which the teacher predicts the reference of record `id`."""

    hidden: Float[Tensor, "n D"]
    head: Head
    where: Mapping[str, slice]

    @property
    def device(self) -> torch.device:
        """The device on which the logits are computed."""
        return self.head.weight.device

    def of(self, records: Sequence[Record]) -> HeadLogits:
        """The teacher's logits of these records' loss rows, in their order, not yet materialised."""
        hidden = torch.cat([self.hidden[self.where[record.id]] for record in records])
        return HeadLogits(hidden.to(self.device), self.head)


@dataclass(frozen=True)
class EnsembleRows:
    """The same for an ensemble; `members` holds, by number, the rows of those that read a reference."""

    ensemble: Ensemble
    members: Mapping[int, TeacherRows]

    @property
    def device(self) -> torch.device:
        """The device on which the logits are computed."""
        return next(iter(self.members.values())).device

    def of(self, records: Sequence[Record]) -> Logits:
        """The ensemble's logits of these records' loss rows, in their order, not yet materialised."""
        if not self.ensemble.routed:
            return self.ensemble.combined([rows.of(records) for rows in self.members.values()])
        chosen = [self.ensemble.chosen(record) for record in records]
        counts = [self.members[k].where[record.id] for k, record in zip(chosen, records, strict=True)]
        present = sorted(set(chosen))
        logits = [self.members[k].of([r for r, j in zip(records, chosen, strict=True) if j == k]) for k in present]
        owner = torch.tensor([present.index(k) for k in chosen], device=logits[0].hidden.device)
        return RoutedLogits(logits, owner.repeat_interleave(torch.tensor([s.stop - s.start for s in counts]).to(owner)))


Rows = TeacherRows | EnsembleRows


def rows_of(teacher: LanguageModel | Ensemble, identity: str, encoder: Encoder, records: Sequence[Record]) -> Rows:
    """`teacher_rows` of a teacher, or of each member of an ensemble, shared with runs where it teaches alone."""
    if not isinstance(teacher, Ensemble):
        return teacher_rows(teacher, identity, encoder, records)
    read = {k: [r for r in records if not teacher.routed or teacher.chosen(r) == k] for k in range(len(teacher.names))}
    return EnsembleRows(
        teacher,
        {
            k: teacher_rows(part, model_digest(part), encoder, read[k])
            for k, part in enumerate(teacher.parts.values())
            if read[k]
        },
    )


def teacher_rows(teacher: LanguageModel, identity: str, encoder: Encoder, records: Sequence[Record]) -> TeacherRows:
    """The rows of the records' references, from the cache or by one forward pass, which is then cached.

    The head is the teacher's own, as loaded. `identity` names the teacher's content.

    Raises:
        ValueError: the teacher encodes text in other ids than the student, so that their rows are not the same
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
    path = kept("teacher_rows", key, ".safetensors", write)
    return TeacherRows(load_file(path)["hidden"], head, row_slices(encoder, items))


def _hidden(teacher: LanguageModel, encoder: Encoder, items: Sequence[Record]) -> Float[Tensor, "n D"]:
    """The hidden states of all loss rows, in the order of `items`."""
    states: dict[str, Tensor] = {}
    shared = part("teacher", shared=True)  # kept for whatever is compared with it
    with shared, reading(teacher), phase("evaluate", len(items), "references") as shown:
        for batch, logits in read(teacher, encoder.batches(items)):
            assert isinstance(logits, HeadLogits)
            pieces = logits.hidden.cpu().split(batch.student.mask.sum(1).tolist())
            states.update(zip((record.id for record in batch.records), pieces, strict=True))
            shown.tokens += int(batch.student.lengths.sum())
            shown.advance(len(pieces))
    return torch.cat([states[item.id] for item in items])
