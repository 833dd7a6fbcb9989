"""Answers of the systems side by side, and what training changed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.reports.frame import Arm, Frame
from kd.reports.grid import Cell, Grid, number
from kd.reports.paired import beside
from kd.runs.results import check_page

SYSTEMS = ("teacher", "sft", "before", "after")
LONGEST = 240  # characters of a text in a cell

Answers = dict[tuple[str, str], dict[str, Mapping[str, Any]]]  # (skill, id) -> by system the first answer


def samples_grids(frame: Frame, count: int = 3) -> list[Grid]:
    """For each arm, of its first run: the items that it gained and lost, and the first `count` that changed."""
    others = beside(frame)
    return [grid for i, arm in enumerate(frame.arms) if (grid := _grid(arm, others.get(i), count)) is not None]


def _grid(arm: Arm, other: Arm | None, count: int) -> Grid | None:
    seed, job = next(iter(arm.runs.items()))
    if job.folder is None:
        return None
    answers = read_answers(job.folder)
    if other is not None and seed in other.runs and (folder := other.runs[seed].folder) is not None:
        for key, systems in read_answers(folder).items():
            if key in answers and "after" in systems:
                answers[key]["sft"] = systems["after"]
    own = {name: systems for (skill, name), systems in answers.items() if skill == arm.skill and "after" in systems}
    if not own:
        return None
    changed = [name for name, systems in own.items() if _change(systems, "before") != 0]
    shown = [*changed, *(name for name in own if name not in changed)][:count]
    present = [system for system in SYSTEMS if any(system in systems for systems in own.values())]
    titles = {"sft": other.label if other else "sft"}
    rows = [_row(own[name], present) for name in shown]
    header = ["prompt", "reference", *(titles.get(system, system) for system in present), "score before → after"]
    label = ", ".join(filter(None, [arm.label, arm.skill, f"seed {seed}"]))
    return Grid(f"Answers: {label}", header, rows, [_summary(own, job.folder.name, titles["sft"])], labels=0)


def _row(systems: Mapping[str, Mapping[str, Any]], present: Sequence[str]) -> list[str]:
    one = systems["after"]
    texts = [_short(systems[system]["response"]) if system in systems else "–" for system in present]
    before = systems.get("before", {}).get("score")
    change = f"{number(before)} → {number(one.get('score'))}"
    return [_short(one["prompt"]), _short(one.get("reference") or "–"), *texts, Cell(change, one.get("score"))]


def _summary(own: Mapping[str, Mapping[str, Mapping[str, Any]]], run: str, beside: str) -> str:
    """Sentences on the items that gained and lost, against before and against the run beside."""
    parts = []
    for system, name in (("before", "the student before"), ("sft", beside)):
        changes = [_change(systems, system) for systems in own.values() if system in systems]
        if changes:
            gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
            parts.append(f"against {name}: {gained} gained, {lost} lost, {len(changes) - gained - lost} as before")
    return f"{len(own)} items of {run}, first answers; {'; '.join(parts)}. Texts are cut at {LONGEST} characters."


def _change(systems: Mapping[str, Mapping[str, Any]], system: str) -> float:
    values = [(systems.get(name) or {}).get("score") for name in ("after", system)]
    return 0.0 if values[0] is None or values[1] is None else float(values[0] - values[1])


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def read_answers(folder: Path) -> Answers:
    """The answers in samples.jsonl. Raises ValueError if the file is torn or was changed since the run ended."""
    path = folder / "samples.jsonl"
    check_page(folder, path.name)
    found: Answers = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is torn ({error})") from None
        if row.get("variant") is None:  # the items as they are
            found.setdefault((row["skill"], row["id"]), {}).setdefault(row["system"], row)
    return found
