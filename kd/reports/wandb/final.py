"""The numbers and tables that a finished run ends with, by the names under which they are logged."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.reports.comparisons.samples import SYSTEMS, Answers, read_answers
from kd.reports.frame import Arm
from kd.reports.runs import Job
from kd.runs.positions import VALUES, read_positions

HEADLINE = "headline"  # of the skill that a run was trained on: its first metric, whichever that is
POSITION = "positions/position"  # the first of a bin: the x axis of the curves by position
SCORES = ("skill", "metric", "system", "value", "low", "high", "n")

Row = Sequence[Any]


def headline(results: Mapping[str, Any]) -> tuple[str, str | None]:
    """The skill that a run was trained on, and the first metric of its answers."""
    arm = Arm({}, {0: Job("", "done", results=results)})
    return arm.skill, arm.headline(arm.skill)


def final(results: Mapping[str, Any]) -> dict[str, float]:
    """The final numbers of all systems by name.

    `scores/SKILL/METRIC/SYSTEM`, `agreement/METRIC/SYSTEM`, `gap_closed/SKILL/METRIC`, `budget/NAME`, and
    `headline/SYSTEM`, which runs on different skills have in common. A number that does not exist is left out.
    """
    found: dict[str, Any] = {}
    for skill, metric, system, one in estimates(results):
        found[f"scores/{skill}/{metric}/{system}" if skill else f"agreement/{metric}/{system}"] = one["value"]
    own, first = headline(results)
    for system, one in (results["scores"].get(own, {}).get(first) or {}).items():
        found[f"{HEADLINE}/{system}"] = None if one is None else one["value"]
    for skill, gaps in results["gap_closed"].items():
        found |= {f"gap_closed/{skill}/{metric}": gap for metric, gap in gaps.items()}
    found |= {f"budget/{name}": value for name, value in results["budget"].items()}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def estimates(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(skill, metric, system, estimate) of each that was measured; agreement with the teacher is of the empty skill."""
    for skill, metrics in (*results["scores"].items(), ("", results["agreement"] or {})):
        for metric, systems in metrics.items():
            for system, one in systems.items():
                if one is not None:
                    yield skill, metric, system, one


def score_rows(results: Mapping[str, Any]) -> list[Row]:
    """The rows of the table of scores, with the columns SCORES."""
    own, _ = headline(results)
    return [
        (skill or own, metric, system, *(one[name] for name in SCORES[3:]))
        for skill, metric, system, one in estimates(results)
    ]


def by_position(folder: Path, skill: str) -> list[dict[str, float]]:
    """The curves of the trained student by the position of a token, a row for each bin.

    POSITION is the first of the bin; `positions/RESPONSES/NAME` are the divergences, entropies and agreement that were
    measured in it (docs/run_folder.md, positions.csv).

    Raises ValueError if positions.csv is torn, or not as it was when its run ended.
    """
    found: dict[int, dict[str, float]] = {}
    for one in read_positions(folder):
        if (one.skill, one.system) == (skill, "after") and one.n:
            numbers = {f"positions/{one.responses}/{name}": getattr(one, name) for name in VALUES}
            known = {name: value for name, value in numbers.items() if value is not None}
            found.setdefault(one.first, {POSITION: float(one.first)}).update(known)
    return [found[first] for first in sorted(found)]


def answers_beside(folder: Path, beside: Path | None) -> Answers:
    """The first answers of each system; those of the run beside are the system `sft`.

    Raises ValueError if a samples.jsonl is torn, or not as it was when its run ended.
    """
    found = read_answers(folder)
    for key, systems in read_answers(beside).items() if beside else ():
        if key in found and "after" in systems:
            found[key]["sft"] = systems["after"]
    return found


def answer_rows(answers: Answers, count: int) -> tuple[list[str], list[Row]]:
    """Columns and rows of the table of answers: `count` prompts with the answer and score of each system."""
    present = [system for system in SYSTEMS if any(system in systems for systems in answers.values())]
    rows: list[Row] = []
    for (skill, _), systems in list(answers.items())[:count]:
        one = next(iter(systems.values()))
        texts = [systems[name]["response"] if name in systems else None for name in present]
        scores = [systems[name].get("score") if name in systems else None for name in present]
        rows.append([skill, one["prompt"], one.get("reference"), *texts, *scores])
    return ["skill", "prompt", "reference", *present, *(f"score {name}" for name in present)], rows


def lengths(answers: Answers) -> dict[str, float]:
    """`answers/SKILL/SYSTEM/tokens`, their mean, and `…/truncated`, the share that reached the limit of tokens."""
    found: dict[str, list[float]] = {}
    for (skill, _), systems in answers.items():
        for system, row in systems.items():
            for name in ("tokens", "truncated"):
                if row.get(name) is not None:
                    found.setdefault(f"answers/{skill}/{system}/{name}", []).append(float(row[name]))
    return {name: math.fsum(values) / len(values) for name, values in found.items()}
