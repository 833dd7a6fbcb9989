"""Numbers that change while a run goes on: weights of terms, shares of what is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from kd.types import Progress

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Schedule:
    """`start` up to `begin`, `end` from `until` on; between them a straight line or an exponential.

    begin, until: fractions of the run (`kd.types.Progress.fraction`); where they are the same, it jumps there.
    shape: "linear", start + (end - start) t, or "exponential", start (end / start)^t; t goes from 0 to 1.

    Raises ValueError for an end that is no finite number, fractions out of order, an exponential to, from or through 0.
    """

    start: float
    end: float
    shape: Literal["linear", "exponential"] = "linear"
    begin: Fraction = 0.0
    until: Fraction = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"it goes from {self.start} to {self.end}; give two finite numbers")
        if not 0 <= self.begin <= self.until <= 1:
            raise ValueError(f"from {self.begin} to {self.until} is no part of a run; keep 0 <= begin <= until <= 1")
        if self.shape == "exponential" and self.start * self.end <= 0:
            raise ValueError(
                f"no exponential goes from {self.start} to {self.end}; take a small number for 0, or shape: linear"
            )

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Schedule":
        """The schedule of a yaml mapping, where 1 is as good as 1.0. Raises ValueError as the class does."""
        wide: dict[str, Any] = {key: float(value) if isinstance(value, int) else value for key, value in node.items()}
        return cls(**wide)

    def __call__(self, progress: Progress) -> float:
        """The value at the step that comes after `progress.step` steps."""
        return self.at(progress.fraction)

    def at(self, fraction: float) -> float:
        """The value when that fraction of the run has passed."""
        if fraction >= self.until:
            return self.end
        if fraction <= self.begin:
            return self.start
        t = (fraction - self.begin) / (self.until - self.begin)
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** t
        return self.start + (self.end - self.start) * t

    def __str__(self) -> str:
        """A short form: "0.005 → 0.001", "0 → 1 at 0.3 of the run"."""
        text = f"{self.start:g} → {self.end:g}" + (" exponentially" if self.shape == "exponential" else "")
        if self.begin == self.until:
            return f"{text} at {self.begin:g} of the run"
        if (self.begin, self.until) == (0, 1):
            return text
        return f"{text} from {self.begin:g} to {self.until:g} of the run"
