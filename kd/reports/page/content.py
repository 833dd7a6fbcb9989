"""All that the page shows, as one value for JSON. Whatever cannot be read is a sentence in it and ends nothing."""

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kd.reports.comparisons.jobs import jobs_grid
from kd.reports.frame import Arm, Frame, identity, seeds_text
from kd.reports.page.comparisons import arm_curves, differences, fronts, limits, pivots, unfinished_curves
from kd.reports.page.positions import left_out, position_curves
from kd.reports.page.run_details import Sections, details
from kd.reports.page.tables import table
from kd.reports.paired import beside
from kd.reports.render import without_hashes
from kd.reports.runs import Job, problems
from kd.reports.sweep import TABLES, Choices

DETAILED = 500  # runs with details; of each arm the first, then the others
SAMPLES, ALL_SAMPLES = 24, 2000  # answers of a run, and of all runs together
POINTS = 100_000  # of the curves of all runs together
FURTHER = ("means", "gaps", "ranks", "transfer", "augmentation")
MOST_ARMS = 1000  # of further tables
OPTIONS = ("pivot", "metric", "system", "baseline", "correction", "samples", "paper")  # fields of Choices


def content(frame: Frame, choices: Choices, page: str = "report.html") -> dict[str, Any]:
    """The content of the page.

    Args:
        frame: the runs.
        choices: the paths, for the commands.
        page: the file that is written, for the command.
    """
    jobs = all_jobs(frame)
    places = {identity(job): place for place, job in enumerate(jobs)}
    order = {skill: [arm for arm in frame.arms if arm.skill == skill] for skill in frame.skills}
    styles = {id(arm): place for arms in order.values() for place, arm in enumerate(arms)}
    arms = [{**_arm(arm, places), "style": styles[id(arm)]} for arm in frame.arms]
    shown, left = list[str](), list[str]()
    section = _Section(shown)
    further = [*(["paper"] if choices.paper else []), *FURTHER]
    found = {
        "title": _title(choices.paths, frame.jobs),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "paths": list(choices.paths),
        "command": _command(choices, page) if choices.paths else None,
        "facts": _facts(frame, jobs),
        "versions": version_differences(jobs),
        "only": 0 if len(frame.jobs) == 1 and jobs[0].results is not None else None,
        "arms": arms,
        "pivots": section(lambda: pivots(frame, choices)),
        "differences": section(lambda: differences(frame, choices)),
        "curves": [
            *section(lambda: arm_curves(frame)),
            *section(lambda: unfinished_curves(list(enumerate(jobs)))),
        ],
        "positions": section(lambda: position_curves(frame, choices)),
        "fronts": section(lambda: fronts(frame, choices, left)),
        "tables": [one for name in further for one in section(partial(_further, name, frame, choices))],
        "runs": _runs(frame, jobs, choices),
        **_details(frame, jobs),
    }
    return {**found, "problems": [*problems(jobs), *shown, *limits(frame, left), *left_out(frame)]}


class _Section:
    """Makes a part of the page; of one that cannot be made, a sentence is kept."""

    def __init__(self, problems: list[str]):
        self.problems = problems

    def __call__(self, made: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            return made()
        except (ValueError, OSError) as error:
            self.problems.append(f"Not shown: {error}.")
            return []


def all_jobs(frame: Frame) -> list[Job]:
    """The jobs that were named, and after them the runs beside these that were found."""
    named = {identity(job): job for job in frame.jobs}
    beside = {identity(job): job for arm in frame.arms for job in arm.runs.values()}
    return list((named | {key: job for key, job in beside.items() if key not in named}).values())


def _command(choices: Choices, page: str) -> str:
    """The command that writes the page."""
    words = ["python", "-m", "kd.reports", *choices.paths]
    for name in OPTIONS:
        if getattr(choices, name) != getattr(Choices, name):
            words += [f"--{name}", str(getattr(choices, name))]
    return shlex.join([*words, "--page", page])


def _title(paths: Sequence[str], jobs: Sequence[Job]) -> str:
    names = ", ".join(Path(os.path.abspath(path)).name for path in paths)
    return names if len(jobs) == 1 and names else f"{names or 'kd'}: {len(jobs):,} runs"


def _arm(arm: Arm, places: Mapping[Any, int]) -> dict[str, Any]:
    return {
        "label": arm.label or arm.skill,
        "skill": arm.skill,
        "name": ", ".join(filter(None, [arm.label, arm.skill])),
        "seeds": seeds_text([arm]),
        "runs": [places[identity(job)] for job in arm.runs.values() if identity(job) in places],
    }


def _facts(frame: Frame, jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """The counts in the header."""
    statuses: dict[str, int] = {}
    for job in jobs:
        statuses[job.status] = statuses.get(job.status, 0) + 1
    count = ", ".join(f"{count:,} {name}" for name, count in statuses.items())
    found = [("runs", count or "none yet"), ("arms", f"{len(frame.arms):,}")]
    seeds = [("seeds", seeds_text(frame.arms).removeprefix("Seeds ").removeprefix("Seed "))] if frame.arms else []
    return [*found, ("trained on", ", ".join(frame.skills) or "–"), *seeds]


def version_differences(jobs: Sequence[Job]) -> list[str]:
    """Sentences on the packages, the code and the devices that differ between finished runs."""
    counts: dict[str, dict[str, int]] = {}
    for job in jobs:
        if job.results is None or job.folder is None:
            continue
        try:
            page = json.loads((job.folder / "environment.json").read_text(encoding="utf-8"))
            versions = {**page.get("versions", {}), "Python": page.get("python"), "device": page.get("device")}
        except (OSError, ValueError, AttributeError, TypeError):
            continue
        versions["code of kd"] = job.results.get("code")
        for name, version in versions.items():
            own = counts.setdefault(name, {})
            own[str(version)] = own.get(str(version), 0) + 1
    differing = {name: own for name, own in counts.items() if len(own) > 1}
    return [f"{name}: {', '.join(map(_counted, own, own.values()))}" for name, own in differing.items()]


def _counted(version: str, count: int) -> str:
    return f"{version} ({count} {'run' if count == 1 else 'runs'})"


def _further(name: str, frame: Frame, choices: Choices) -> list[dict[str, Any]]:
    if not 0 < len(frame.arms) <= MOST_ARMS or len(frame.jobs) == 1:
        return []
    command = choices.command(name)
    return [{"name": name, **table(replace(grid, command=command))} for grid in TABLES[name](frame, choices)]


def _runs(frame: Frame, jobs: Sequence[Job], choices: Choices) -> dict[str, Any]:
    """The table of runs; a row for each, in the order of `jobs`."""
    grid = jobs_grid(jobs, seeds=any(len(arm.runs) > 1 for arm in frame.arms))
    grid = replace(grid, rows=without_hashes([list(row) for row in grid.rows]), command=choices.command("runs"))
    return table(replace(grid, title="Runs", notes=[*grid.notes, *frame.notes]))


def _details(frame: Frame, jobs: Sequence[Job]) -> dict[str, Any]:
    """Details of up to DETAILED runs by place, the settings that they refer to, and a sentence on what is left out."""
    others = beside(frame)
    owners = {identity(job): (i, seed) for i, arm in enumerate(frame.arms) for seed, job in arm.runs.items()}
    firsts = {identity(next(iter(arm.runs.values()))) for arm in frame.arms}
    order = sorted(range(len(jobs)), key=lambda place: identity(jobs[place]) not in firsts)[:DETAILED]
    samples = max(4, min(SAMPLES, ALL_SAMPLES // max(1, len(order))))
    points = max(16, min(100, POINTS // max(1, len(order) * 12)))
    sections = Sections()
    found = {}
    for place in sorted(order):
        arm, seed = owners.get(identity(jobs[place]), (-1, 0))
        other = others.get(arm)
        words = f"beside it: {other.label}" if other else "sft"
        run = other.runs.get(seed) if other else None
        found[place] = details(jobs[place], run, words, sections, samples=samples, points=points)
    rule = f"At most {samples} answers of each run and {points} points of each curve, which keeps its peaks."
    if len(order) < len(jobs):
        rule = f"Details are of {len(order)} of {len(jobs)} runs, of each arm the first before the others. {rule}"
    return {"details": found, "settings": sections.pages, "rule": rule}
