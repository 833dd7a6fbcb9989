"""Shares that change while a run goes on: of steps, of sequences, of tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from kd.types import Progress

Decay = Literal["decreasing", "constant", "increasing"]
REPLAY: Mapping[Decay, Callable[[float], float]] = {  # of what the student wrote, the share that is written anew
    "decreasing": lambda fraction: 1 - fraction,
    "constant": lambda fraction: 0.5,
    "increasing": lambda fraction: fraction,
}


@dataclass(frozen=True)
class Linear:
    """A share that goes from `start`, before the first step, to `end`, after the last. `end` None: it stays.

    Raises ValueError for what is no share.
    """

    start: float
    end: float | None = None

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"a share of {value} is not between 0 and 1; set it to something that is")

    def __call__(self, progress: Progress) -> float:
        """At the step that comes after `progress.step` steps."""
        if self.end is None:
            return self.start
        return (1 - progress.fraction) * self.start + progress.fraction * self.end
