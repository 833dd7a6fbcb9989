"""A teacher whose targets are read from disk, without its network."""

from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.data.sequences import Encoder
from kd.kernels.logits import DenseLogits, Logits
from kd.kernels.sparse import SparseLogits
from kd.teachers.heads import moved, read_head
from kd.teachers.interface import Teacher
from kd.teachers.target_store import TargetStore, check_part, keys_of
from kd.teachers.targets import HeldMass, Targets
from kd.types import Batch, Head, ModelOutput, Record, Sequences

REMEDY = "run `python -m kd.cache` with the same overrides, or train with targets.cached=false"


class Cached(nn.Module, Teacher):
    """The targets that `python -m kd.cache` wrote to `folder`, with the interface of a live teacher. It has logits
    only.

    Raises FileNotFoundError if the folder holds no targets.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"logits"})
    exact: ClassVar[None] = None  # the full logits are not available
    readings: ClassVar[int] = 0  # networks that read a sequence

    def __init__(self, folder: Path, targets: Targets):
        super().__init__()
        if not (folder / "targets.json").exists():
            raise FileNotFoundError(
                f"targets.cached=true, but nothing was cached for this teacher and these targets in {folder}; {REMEDY}"
            )
        self.targets, self.store = targets, TargetStore(folder)
        self.manifest = self.store.manifest  # verified here, before any target is read
        self.words = AutoTokenizer.from_pretrained(check_part(folder / "tokenizer"))
        path = folder / "head.safetensors"
        self.head: Head | None = read_head(check_part(path)) if path.exists() else None
        self.held_mass = HeldMass()

    def identity(self) -> str:
        """The digest of the teacher whose targets these are."""
        return self.manifest["teacher"]

    @property
    def vocabulary(self) -> int:
        """The teacher's."""
        return self.manifest["vocabulary"]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's."""
        return self.words

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """The logits of the loss rows. Raises ValueError for a sequence that is not in the cache."""
        logits = self._kept(sequences)
        if isinstance(logits, SparseLogits):
            self.held_mass.add(logits)
        return ModelOutput(logits=logits)

    def probe(self, batch: Batch) -> tuple[SparseLogits | Logits, Logits]:
        """The kept logits and the full ones of sequences that were stored for the audit."""
        sequences = batch.teacher
        full = load_file(check_part(self.store.probe))
        rows = [full[key.hex()] for key in self._known(sequences, full, bytes.hex)]
        return self._kept(sequences), DenseLogits(torch.cat(rows).to(sequences.tokens.device))

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """Raises ValueError, with the record's name, if a record of `read` is not in the cache, or the teacher's full
        output on a record of `audited` is not.
        """
        probed = self.store.probed()
        for record in read:
            if not all(key in self.store for key in _keys(record, encoder)):
                raise ValueError(
                    f"the teacher's targets of record {record.id} of {record.skill} are not in {self.store.folder} "
                    f"({len(self.store)} sequences are); {REMEDY}"
                )
        for record in audited:
            if not all(key in self.store and key in probed for key in _keys(record, encoder)):
                raise ValueError(
                    f"the audit compares with the teacher's whole output on record {record.id} of {record.skill}, "
                    f"which is not in {self.store.folder}; {REMEDY}, or with targets.audit=null"
                )

    def tokens(self, records: Iterable[Record], encoder: Encoder) -> int:
        """The tokens that the teacher read to cache these records, each record once, however often a run reads it."""
        return sum(int(batch.teacher.lengths.sum()) for record in records for batch in encoder.batches([record]))

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`; as `Approximated`."""
        return {} if self.targets.rule is None else self.held_mass.take_report()

    def _kept(self, sequences: Sequences) -> SparseLogits | Logits:
        columns = self.store.columns(self._known(sequences, self.store))
        on_device = {name: column.to(sequences.tokens.device) for name, column in columns.items()}
        self.head = None if self.head is None else moved(self.head, sequences.tokens.device)
        return self.targets.read(on_device, self.vocabulary, self.head)

    def _known(self, sequences: Sequences, known: Container, name: Callable = bytes) -> list[bytes]:
        keys = keys_of(sequences)
        for i, key in enumerate(keys):
            if name(key) not in known:
                text = self.tokenizer.decode(sequences.labels[i][sequences.mask[i]].tolist())
                raise ValueError(
                    f"the teacher's targets of the response {text[:60]!r} are not in {self.store.folder}; {REMEDY}"
                )
        return keys


def _keys(record: Record, encoder: Encoder) -> list[bytes]:
    return [key for batch in encoder.batches([record]) for key in keys_of(batch.teacher)]
