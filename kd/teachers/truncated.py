"""A live teacher of whose distributions only `targets` are kept, so that these can be compared with the whole."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from kd.data.sequences import Encoder
from kd.kernels.logits import Logits
from kd.kernels.sparse import SparseLogits
from kd.teachers.interface import NetworkTeacher
from kd.teachers.targets import HeldMass, Targets
from kd.types import Batch, ModelOutput, Record


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

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {} if self.targets.rule is None else self.held_mass.take_report()

    def _kept(self, logits: Logits) -> Any:
        return self.targets.read(self.targets.columns(logits), logits.size)
