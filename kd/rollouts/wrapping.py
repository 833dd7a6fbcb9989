"""Rollouts around another one that generates."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kd.rollouts import Rollout
from kd.types import Batch, Record


class Wrapping(Rollout):
    """A rollout that passes on the reports, the state and the validation metrics of its `writer`.

    `provides` is the most that such a rollout passes on of what its writer provides; `adds` is its own.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset()  # beside the requirements of the writer

    def __init__(self, writer: Rollout):
        if writer.uses != 1:
            raise ValueError(
                f"rollout.writer {type(writer).__name__} replays whole windows, so it has to be the outermost rollout; "
                "swap the two"
            )
        if writer.ahead:
            raise ValueError(
                f"rollout.writer {type(writer).__name__} generates for the {writer.ahead} next windows as they come "
                "from the data, so it cannot be inside another rollout; take rollout=asynchronous itself, or set "
                "rollout.writer.staleness=0"
            )
        self.writer, self.samples = writer, writer.samples

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return self.writer.take_report()

    def after_validation(self, metrics: Mapping[str, float]) -> None:
        """Passes the validation metrics to the writer."""
        self.writer.after_validation(metrics)

    def state_dict(self) -> dict[str, Any]:
        """See `kd.rollouts.Rollout`; also the writer's state."""
        return {**super().state_dict(), "writer": self.writer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.writer.load_state_dict(state["writer"])


def records_of(window: Sequence[Batch]) -> list[Record]:
    """The records in the order of the micro-batches."""
    return [record for batch in window for record in batch.records]
