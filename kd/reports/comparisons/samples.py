"""Answers of the systems side by side, and what training changed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.reports.comparisons.changed_words import as_text, marked
from kd.reports.frame import Arm, Frame
from kd.reports.grid import Cell, Grid, number
from kd.reports.paired import beside
from kd.reports.runs import Job
from kd.runs.results import check_page

SYSTEMS = ("teacher", "sft", "before", "after")
LONGEST = 240  # characters of a text in a cell
MARKS = "[-…-]: words before training that are gone after it. {+…+}: words which the student before lacks."

Answers = dict[tuple[str, str], dict[str, Mapping[str, Any]]]  # (skill, id) -> by system the first answer
Items = Mapping[str, Mapping[str, Mapping[str, Any]]]  # of one skill: id -> the same


def samples_grids(frame: Frame, count: int = 3) -> list[Grid]:
    """For each arm, of its first run: the items that it gained and lost, and the first `count` that changed."""
    others = beside(frame)
    return [grid for i, arm in enumerate(frame.arms) if (grid := _grid(arm, others.get(i), count)) is not None]


def _grid(arm: Arm, other: Arm | None, count: int) -> Grid | None:
    seed, job = next(iter(arm.runs.items()))
    own = side_by_side(job, other.runs.get(seed) if other else None, arm.skill)
    if not own or job.folder is None:
        return None
    present = systems_of(own)
    titles = {"sft": other.label if other else "sft"}
    rows = [_row(own[name], present) for name in changed_first(own)[:count]]
    header = ["prompt", "reference", *(titles.get(system, system) for system in present), "score before → after"]
    label = ", ".join(filter(None, [arm.label, arm.skill, f"seed {seed}"]))
    headline = arm.headline(arm.skill)
    sign = 1 if headline is None or arm.metric(headline).higher_is_better else -1
    notes = [f"{summary(own, job.folder.name, titles['sft'], sign)} Texts are cut at {LONGEST} characters."]
    notes += [MARKS] if "before" in present else []
    return Grid(f"Answers: {label}", header, rows, notes, labels=0)


def side_by_side(job: Job, other: Job | None, skill: str) -> Items:
    """The first answers of each system to the items of a skill that the trained student answered, by id.

    other: the run beside it; its trained student is the system `sft`.
    """
    answers = {} if job.folder is None else read_answers(job.folder)
    if other is not None and other.folder is not None:
        for key, systems in read_answers(other.folder).items():
            if key in answers and "after" in systems:
                answers[key]["sft"] = systems["after"]
    return {name: systems for (of, name), systems in answers.items() if of == skill and "after" in systems}


def changed_first(own: Items) -> list[str]:
    """The ids of items, first those with a score that training changed."""
    return sorted(own, key=lambda name: change(own[name], "before") == 0)


def systems_of(own: Items) -> list[str]:
    """The systems that answered, in the order of their columns."""
    return [system for system in SYSTEMS if any(system in systems for systems in own.values())]


def _row(systems: Mapping[str, Mapping[str, Any]], present: Sequence[str]) -> list[str]:
    one = systems["after"]
    pieces = marked(systems, LONGEST)
    texts = [as_text(pieces[system], system == "before") if system in systems else "–" for system in present]
    before = systems.get("before", {}).get("score")
    change = f"{number(before)} → {number(one.get('score'))}"
    return [_short(one["prompt"]), _short(one.get("reference") or "–"), *texts, Cell(change, one.get("score"))]


def summary(own: Items, run: str, beside: str, sign: int = 1) -> str:
    """Sentences on the items that gained and lost, against before and against the run beside.

    sign: -1 where lower scores are better.
    """
    parts = []
    for system, name in (("before", "the student before"), ("sft", beside)):
        changes = [sign * change(systems, system) for systems in own.values() if system in systems]
        if changes:
            gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
            parts.append(f"against {name}: {gained} gained, {lost} lost, {len(changes) - gained - lost} as before")
    return f"{len(own)} items of {run}, first answers; {'; '.join(parts)}."


def change(systems: Mapping[str, Mapping[str, Any]], system: str) -> float:
    """The score of the trained student's answer less that of a system; 0 where one of them has none."""
    values = [(systems.get(name) or {}).get("score") for name in ("after", system)]
    return 0.0 if values[0] is None or values[1] is None else float(values[0] - values[1])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def read_answers(folder: Path) -> Answers:
    """The answers in samples.jsonl. Raises ValueError if the file is torn or was changed since the run ended."""
    path = folder / "samples.jsonl"
    check_page(folder, path.name)
    found: Answers = {}
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []  # U+2028 and the like end no line
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is torn ({error})") from None
        if row.get("variant") is None:  # the items as they are
            found.setdefault((row["skill"], row["id"]), {}).setdefault(row["system"], row)
    return found
