"""Checks of the terms' weights in the course of a run: numbers and schedules, never all 0."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from kd.components.signatures import check_call, shown
from kd.schedules import Schedule

LARGEST = 1e6  # beyond it, gradients leave float32 sooner or later; the learning rate is the place for a scale


def check_weight(path: str, weight: Any) -> None:
    """Raises ValueError for a number that is negative or beyond `LARGEST`, and for a mapping that is no schedule.

    A weight that is neither a number nor a mapping is left to the check of the term's other keys.
    """
    ends = [weight.get("start"), weight.get("end")] if isinstance(weight, Mapping) else [weight]
    for end in ends:
        if isinstance(end, float | int) and end < 0:
            raise ValueError(
                f"{path}={shown(weight)}: a negative weight makes the term grow instead of fall; give a number between "
                f"0, which leaves the term out, and {LARGEST:g}"
            )
        if isinstance(end, float | int) and not end <= LARGEST:  # not a number either
            raise ValueError(
                f"{path}={shown(weight)}: a weight is a number between 0, which leaves the term out, and {LARGEST:g}"
            )
    if not isinstance(weight, Mapping):
        return
    check_call(path, weight, Schedule, name="a schedule")
    try:
        Schedule.of(weight)
    except ValueError as error:
        raise ValueError(f"{path}={shown(weight)}: {error}") from None


def check_silence(weights: Mapping[str, Any]) -> None:
    """Raises ValueError if there is a moment at which all weights are 0.

    A weight, which is never negative, is 0 throughout or nowhere between two edges of schedules.
    """
    schedules = {n: Schedule.of(w if isinstance(w, Mapping) else {"start": w, "end": w}) for n, w in weights.items()}
    edges = sorted({0.0, 1.0}.union(*({s.begin, s.until} for s in schedules.values())))
    for moment in (moment for one, other in pairwise(edges) for moment in (one, (one + other) / 2)):
        if not any(schedule.at(moment) for schedule in schedules.values()):
            fact = ", ".join(f"objective.{name}.weight={shown(weight)}" for name, weight in weights.items())
            when = f" at {moment:g} of the run" if any(isinstance(w, Mapping) for w in weights.values()) else ""
            raise ValueError(f"{fact}: nothing is left to learn from{when}; give one term a weight")
