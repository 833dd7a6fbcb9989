"""Rollouts that have another one write, sometimes."""

from collections.abc import Sequence
from typing import Any, ClassVar

from kd.rollouts import Rollout, Spent
from kd.types import Batch, Record


class Wrapping:
    """Passes on what the `writer` has to tell, to keep, and to be told.

    `provides` is the most that such a rollout passes on of what its writer provides; `adds` is its own.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()  # beside what the writer does

    def __init__(self, writer: Rollout):
        if getattr(writer, "uses", 1) != 1:
            raise ValueError(
                f"rollout.writer {type(writer).__name__} replays whole windows, so it has to stand outermost; "
                "wrap it the other way round"
            )
        self.writer = writer

    @property
    def samples(self) -> int:
        """Responses to each prompt that the writer writes."""
        return getattr(self.writer, "samples", 1)

    def spent(self) -> Spent:
        """See `kd.rollouts.Spent`."""
        return self.writer.spent() if hasattr(self.writer, "spent") else Spent()

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return self.writer.take_report() if hasattr(self.writer, "take_report") else {}

    def after_validation(self, metrics: dict[str, float]) -> None:
        """What was measured, for a writer that goes by it."""
        if hasattr(self.writer, "after_validation"):
            self.writer.after_validation(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors."""
        state = self.writer.state_dict() if hasattr(self.writer, "state_dict") else {}
        return {"writer": state} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        if "writer" in state:
            self.writer.load_state_dict(state["writer"])  # type: ignore[attr-defined]


def records_of(window: Sequence[Batch]) -> list[Record]:
    """In the order of the micro-batches."""
    return [record for batch in window for record in batch.records]
