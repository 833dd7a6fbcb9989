"""A live teacher of whose distributions only `targets` are kept, so that these can be compared with the whole."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kd.data.sequences import Encoder
from kd.kernels.logits import DenseLogits, HeadLogits, Logits
from kd.kernels.sparse import SparseLogits
from kd.seeding import derive
from kd.teachers.interface import NetworkTeacher
from kd.teachers.target_store import keys_of
from kd.teachers.targets import HeldMass, Targets
from kd.types import Batch, ModelOutput, Record, Shape


class Approximated(nn.Module, NetworkTeacher):
    """The teacher `exact` with its logits reduced to `targets`; its other outputs are unchanged.

    Reports `teacher_mass`, the mean probability of the ids that are held, unless the targets lose nothing.
    """

    def __init__(self, exact: NetworkTeacher, targets: Targets):
        super().__init__()
        self.provides = exact.provides  # type: ignore[misc]  # which depends on the teacher
        self.whole, self.targets = exact, targets
        self.held_mass = HeldMass()

    @property
    def exact(self) -> NetworkTeacher:
        """The teacher with its full logits."""
        return self.whole

    @property
    def model(self) -> Any:
        """The teacher's model."""
        return self.exact.model

    @property
    def system(self) -> Any:
        """The teacher's."""
        return self.exact.system

    def identity(self) -> str:
        """The identity of `exact`, whose texts these are."""
        return self.exact.identity()

    @property
    def readings(self) -> int:
        """The teacher's."""
        return self.exact.readings

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The teacher's."""
        return self.exact.tokenizer

    @property
    def vocabulary(self) -> int:
        """The teacher's."""
        return self.exact.vocabulary

    @property
    def shape(self) -> Shape | None:
        """The teacher's."""
        return self.exact.shape

    def reads_packed(self) -> bool:
        """Return whether the teacher does."""
        return self.exact.reads_packed()

    def expect(self, batches: Sequence[Batch]) -> None:
        """See `Teacher`."""
        self.exact.expect(batches)

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """See `Teacher`."""
        self.exact.check(records, read, audited, encoder)

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """See `Teacher`; `logits` are `SparseLogits`, unless the targets lose nothing."""
        output = self.exact.output(batch, wanted)
        if "logits" in wanted and self.targets.rule is not None:
            output.logits = kept = self._kept(output.logits)
            self.held_mass.add(kept)
        return output

    def probe(self, batch: Batch) -> tuple[SparseLogits, Logits]:
        """The kept logits, and the full ones."""
        logits = self.exact.read(batch, frozenset({"logits"})).logits
        return self._kept(logits), logits

    def columns_of(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The columns of each sequence of a batch. The draws depend on the sequence alone, not on others."""
        logits = self.exact.read(batch, frozenset({"logits"})).logits
        ends, found = batch.teacher.mask.sum(1).cumsum(0).tolist(), []
        for key, start, end in zip(keys_of(batch.teacher), [0, *ends], ends, strict=False):
            generator = torch.Generator(batch.teacher.mask.device).manual_seed(derive(0, "targets", key.hex()))
            found.append(self.targets.columns(_part(logits, slice(start, end)), generator))
        return found

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        mass = {} if self.targets.rule is None else self.held_mass.take_report()
        return {**mass, **self.exact.take_report()}

    def _kept(self, logits: Logits) -> Any:
        return self.targets.read(self.targets.columns(logits), logits.size)


def _part(logits: Logits, rows: slice) -> Logits:
    if isinstance(logits, HeadLogits):
        return HeadLogits(logits.hidden[rows], logits.head)
    return DenseLogits(logits.rows(rows))
