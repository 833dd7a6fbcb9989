"""A live teacher of whose distributions only `targets` are kept, so that these can be studied against the whole."""

from typing import Any

from torch import nn

from kd.kernels.logits import Logits
from kd.kernels.sparse import SparseLogits
from kd.teachers.targets import HeldMass, Targets
from kd.teachers.white_box import ask
from kd.types import Batch, ModelOutput, Sequences, Shape


class Approximated(nn.Module):
    """`exact` with its logits cut down; all else that it says passes unchanged.

    Reports `teacher_mass`, the mean probability of the ids that are held, unless the targets lose nothing.
    """

    def __init__(self, exact: nn.Module, targets: Targets):
        super().__init__()
        self.exact, self.targets = exact, targets
        self.told = HeldMass()

    @property
    def model(self) -> Any:
        """The network behind it, for those who ask the teacher itself."""
        return self.exact.model

    @property
    def shape(self) -> Shape:
        """See `LanguageModel`."""
        return self.exact.shape  # type: ignore[return-value]

    @property
    def routed(self) -> bool:
        """See `kd.teachers.ensemble`."""
        return getattr(self.exact, "routed", False)

    @property
    def readings(self) -> int:
        """How many networks read each sequence."""
        return getattr(self.exact, "readings", 1)

    def forward(self, sequences: Sequences, wanted: frozenset[str], *told: Any) -> ModelOutput:
        """See `LanguageModel`; `logits` are `SparseLogits`, unless the targets lose nothing."""
        output = self.exact(sequences, wanted, *told)
        if "logits" in wanted and self.targets.rule is not None:
            output.logits = kept = self._kept(output.logits)
            self.told.add(kept)
        return output

    def probe(self, batch: Batch) -> tuple[SparseLogits, Logits]:
        """What is kept, and all of it."""
        logits = ask(self.exact, batch, frozenset({"logits"})).logits
        return self._kept(logits), logits

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {} if self.targets.rule is None else self.told.take_report()

    def _kept(self, logits: Logits) -> Any:
        return self.targets.read(self.targets.columns(logits), logits.size)
