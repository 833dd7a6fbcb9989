"""The metrics in one table: name, unit, range, direction and heading, for all code that uses one.

A skill declares its own metric the same way, wherever its code lies; `results.json` carries the facts of all metrics
that it holds, and reports read them there.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Subject = Literal["references", "teacher", "answers"]


@dataclass(frozen=True)
class Metric:
    """A number by which systems are compared; the defaults are those of a share of right answers.

    Args:
        name: the key in `results.json`: letters, digits, `_` and `-`.
        heading: the words above its column; None: the name.
        unit: what a value counts.
        low, high: the least and the largest value; infinite where there is none.
        higher_is_better: the direction.
        of: the measured subject: the `references`, the distance from the `teacher` on them, or the `answers`.
        description: the words in a model card; None: the name.

    Raises:
        ValueError: the name or the range is none, or answers have no worst value, which one without a verdict gets.
    """

    name: str
    heading: str | None = None
    unit: str = "share"
    low: float | int = 0.0
    high: float | int = 1.0
    higher_is_better: bool = True
    of: Subject = "answers"
    description: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"metric {self.name!r}: a name has letters, digits, _ and -, as exact_match")
        if not self.low < self.high:
            raise ValueError(f"metric {self.name}: low={self.low} is not below high={self.high}; give its range")
        if self.of == "answers" and not math.isfinite(self.worst):
            end = "low" if self.higher_is_better else "high"
            raise ValueError(
                f"metric {self.name}: {end}={self.worst} is its worst value, which an answer without a verdict gets; "
                f"give a finite {end}"
            )

    @property
    def title(self) -> str:
        """The words above a column."""
        return self.heading or self.name

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value."""
        return float(self.low), float(self.high)

    @property
    def worst(self) -> float:
        """The end of the range from which values improve."""
        return float(self.low if self.higher_is_better else self.high)

    @property
    def best(self) -> float:
        """The end of the range towards which values improve; infinite where there is none."""
        return float(self.high if self.higher_is_better else self.low)

    def share(self, value: float) -> float:
        """The place of `value` between the worst (0) and the best (1), for a range with two ends."""
        return (value - self.worst) / (self.best - self.worst)

    def facts(self) -> dict[str, Any]:
        """The entry of `results.json` under the metric's name; an infinite end is None."""
        found = asdict(self) | {"heading": self.title}
        return {key: _finite(value) for key, value in found.items() if key not in ("name", "description")}


_DISTANCE: dict[str, Any] = {"low": 0.0, "high": math.inf, "higher_is_better": False}
_ALL = (
    Metric("bits_per_byte", "bits per byte", unit="bits per byte", of="references", **_DISTANCE),
    Metric("top1", "top-1 agreement", of="teacher", description="top-1 agreement with the teacher"),
    Metric(
        "forward_kl",
        "forward KL (nats)",
        unit="nats per token",
        of="teacher",
        description="forward KL(teacher ‖ student), nats",
        **_DISTANCE,
    ),
    Metric(
        "reverse_kl",
        "reverse KL (nats)",
        unit="nats per token",
        of="teacher",
        description="reverse KL(student ‖ teacher), nats",
        **_DISTANCE,
    ),
)
METRICS = {metric.name: metric for metric in _ALL}  # that every run has, where there is something to measure them on
EXCESS_ERROR = Metric(
    "excess_error",
    "ExAccErr (%)",
    unit="percent",
    low=-100.0,
    high=math.inf,
    higher_is_better=False,
    of="teacher",
    description="excess accumulated error of the student's own prefixes, percent",
)  # of evaluation.excess_error
ACCEPTANCE = Metric(
    "acceptance_rate",
    "acceptance",
    of="teacher",
    description="share of the student's proposals that speculative decoding of the teacher accepts",
)  # of evaluation.draft, as the next one
ACCEPTED_LENGTH = Metric(
    "accepted_length",
    "tokens a block",
    unit="tokens",
    low=1.0,
    high=math.inf,
    of="teacher",
    description="tokens for each pass of the teacher in speculative decoding with the student as draft",
)
ON_REQUEST = {metric.name: metric for metric in (EXCESS_ERROR, ACCEPTANCE, ACCEPTED_LENGTH)}
ON_TEACHER = tuple(name for name, metric in METRICS.items() if metric.of == "teacher")  # in a report's order


def of_skill(declared: str | Metric) -> Metric:
    """The metric that a skill declares; a name alone is a share of right answers.

    Raises ValueError for one that is not of answers, or bears the name of one that every run has.
    """
    metric = Metric(declared) if isinstance(declared, str) else declared
    if metric.name in METRICS or metric.of != "answers":
        raise ValueError(f"metric {metric.name} of a skill: it is of answers, with a name beside {', '.join(METRICS)}")
    return metric


def of_results(results: Mapping[str, Any], name: str) -> Metric:
    """The metric `name` of a finished run's results.json.

    A run from before facts were recorded holds metrics of this table and shares of right answers, nothing else.
    """
    facts = (results.get("metrics") or {}).get(name)
    if facts is None:
        return METRICS.get(name) or Metric(name)
    ends = {"low": -math.inf, "high": math.inf}
    found: dict[str, Any] = {key: ends.get(key) if value is None else value for key, value in facts.items()}
    return Metric(name, **found)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
