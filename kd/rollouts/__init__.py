"""Who writes the responses that the student learns on."""

from typing import Protocol, runtime_checkable

from kd.sequences import Encoder
from kd.types import Batch, Models, Progress


@runtime_checkable
class Rollout(Protocol):
    """One optimizer step's window in, the window to learn from out."""

    provides: frozenset[str]  # names of kd.signals.FROM_ROLLOUT that its batches carry
    requires: frozenset[str]  # fields of the models' outputs that it reads

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """Random numbers come from torch's global generator, which the caller seeds by step."""
