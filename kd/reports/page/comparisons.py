"""The comparisons on the page: pivots, differences, score against cost, curves of arms, each as Python computed it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations
from typing import Any

import numpy as np

from kd.reports.comparisons.costs import OF_TEACHER, OF_TRAINING, TEACHER_FLOPS, TITLES, budgets_of, cost_cell
from kd.reports.comparisons.curves import BANDS, band, logged, series
from kd.reports.comparisons.differences import difference_grid
from kd.reports.comparisons.pareto import STEPS, front, points
from kd.reports.comparisons.pivot import (
    MOST_TESTED,
    default_axes,
    facts_of,
    headline_of,
    interval_notes,
    mean_of,
    metrics_of,
    pivot_grid,
)
from kd.reports.comparisons.shades import coloured, line_of, pivot_shades
from kd.reports.frame import Arm, Frame, seeds_text
from kd.reports.grid import with_interval
from kd.reports.page.run_details import ordered
from kd.reports.page.tables import curve, drawn, table
from kd.reports.paired import beside, parsed
from kd.reports.palette import SHADES
from kd.reports.runs import Job
from kd.reports.sweep import Choices

OWN = "each skill's own"  # the choice of no metric
AXES, METRICS = 4, 6  # settings and metrics that may be chosen, at most
PIVOTS, ROWS, CELLS = 36, 500, 12_000  # on the page, rows of each, and means of all of them, at most
ARMS, MARKS = 200, 8000  # of a figure of score against cost, and of all of them, at most
LINES, CURVES, POINTS = 40, 10, 60_000  # arms and metrics of a figure of curves, and points of all of them
RULE = "Line: the front, where no other arm costs no more and scores no worse; its points are means, without a test."
UNFINISHED = "unfinished runs"
TABLE = "they are printed by python -m kd.reports PATH --tables"


def metric_choices(frame: Frame) -> list[str | None]:
    """The metrics that a reader may choose: none for each skill's own, then by name."""
    return [None, *metrics_of(frame.arms)[:METRICS]]


def title_of(frame: Frame, metric: str | None) -> str:
    """The words of a metric that may be chosen."""
    return OWN if metric is None else facts_of(frame.arms, metric).title


def pivots(frame: Frame, choices: Choices) -> list[dict[str, Any]]:
    """Pivots of the metrics by pairs of settings, the default one first; fewer of many arms."""
    first = default_axes(frame)
    if first is None:
        return []
    columns = sorted(frame.columns[:AXES], key=lambda name: name != first[0])
    pairs = list(dict.fromkeys([first, *permutations(columns, 2)]))
    every = ((pair, metric) for metric in metric_choices(frame) for pair in pairs)
    most = max(1, min(PIVOTS, CELLS // len(frame.arms)))
    found = (_pivot(frame, *pair, metric, choices) for pair, metric in islice(every, most))
    return [one for one in found if one is not None]


def _pivot(frame: Frame, rows: str, columns: str, metric: str | None, choices: Choices) -> dict[str, Any] | None:
    grid = pivot_grid(frame, rows, columns, metric=metric, correction=choices.correction)
    if grid is None:
        return None
    shades = _unlike(pivot_shades(frame, grid, metric), line_of(frame, grid))[:ROWS]
    labels = [rows, *(name for name in frame.columns if name not in (rows, columns))]
    across = list(dict.fromkeys(arm.values[columns] for arm in frame.arms))
    places = {
        (*(arm.values[name] for name in labels), arm.values[columns]): place for place, arm in enumerate(frame.arms)
    }
    kept = grid.rows[:ROWS]
    arms = [[places.get((*row[: len(labels)], name)) for name in across] for row in kept]  # a metric may follow
    chosen = replace(choices, pivot=f"{rows},{columns}", metric=metric)
    cut = [f"The first {ROWS} of {len(grid.rows)} rows."] if len(grid.rows) > ROWS else []
    shown = replace(grid, rows=kept, notes=[*cut, *grid.notes, coloured(frame, grid)], command=chosen.command("pivot"))
    return {
        "by": [rows, columns, title_of(frame, metric)],
        **table(shown),
        "shades": [[_step(one) for one in row] for row in shades.tolist()],
        "arms": arms,
        "line": line_of(frame, grid),
    }


def _step(shade: float) -> int | None:
    """The place of a shade in SHADES."""
    return None if math.isnan(shade) else round(shade * (len(SHADES) - 1))


def _unlike(shades: np.ndarray, line: str) -> np.ndarray:
    """The shades, without those of lines (row, column or table) in which all scores are alike: they show nothing."""
    if line == "table":
        return shades if len(set(shades[~np.isnan(shades)].tolist())) > 1 else np.full_like(shades, np.nan)
    lines = shades if line == "row" else shades.T
    alike = [len(set(one[~np.isnan(one)].tolist())) < 2 for one in lines]
    found = np.where(np.array(alike)[:, None], np.nan, lines)
    return found if line == "row" else found.T


def differences(frame: Frame, choices: Choices) -> list[dict[str, Any]]:
    """The paired differences to the run beside each arm, by metric; none where there is none, or too many runs."""
    if too_many_runs(frame):
        return []
    baseline = None if choices.baseline is None else parsed(choices.baseline)
    found = []
    for metric in metric_choices(frame):
        grid = difference_grid(frame, baseline, metric=metric, correction=choices.correction)
        if grid is not None:
            command = replace(choices, metric=metric).command("differences")
            place = next(i for i, name in enumerate(grid.header) if name.startswith("less\n"))
            found.append({"by": [title_of(frame, metric)], **table(replace(grid, command=command)), "bars": place})
    return found


def too_many_runs(frame: Frame) -> bool:
    """Return whether there are more runs than the page has differences of."""
    return sum(len(arm.runs) for arm in frame.arms) > MOST_TESTED


def limits(frame: Frame, left: Sequence[str]) -> list[str]:
    """Sentences on the differences and the figures of score against cost that the page leaves out.

    left: the skills of which `fronts` leaves out figures.
    """
    found, names = [], list(dict.fromkeys(left))
    if too_many_runs(frame) and beside(frame):
        found.append(f"Differences are not on the page: there are more than {MOST_TESTED} runs; {TABLE} differences.")
    if names:
        shown = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        most = f"at most {ARMS} arms of a skill and {MARKS:,} points"
        found.append(f"Score against cost of {shown} is not all on the page, which has {most}; {TABLE} pareto.")
    return found


def fronts(frame: Frame, choices: Choices, left: list[str]) -> list[dict[str, Any]]:
    """Points of score against each cost in which arms differ, by skill, metric and cost; MARKS at most.

    left: gets the skills of which some are left out.
    """
    found: list[dict[str, Any]] = []
    for skill in frame.skills:
        arms = [(place, arm) for place, arm in enumerate(frame.arms) if arm.skill == skill]
        if not 1 < len(arms) <= ARMS:
            left += [skill] if len(arms) > 1 else []
            continue
        own = [arm for _, arm in arms]
        notes = [RULE, *interval_notes(own), OF_TRAINING]
        for metric in metric_choices(frame):
            name = metric or headline_of(own, skill) or ""
            for cost in (STEPS, *budgets_of(own)):
                full = sum(len(one["points"]) for one in found) + len(arms) > MARKS
                left += [skill] if full else []
                marks = [] if full else _points(frame, arms, cost, name)
                if len({mark["x"] for mark in marks}) > 1:
                    words = TITLES.get(cost, cost).replace("\n", " ")
                    one = {"by": [skill, title_of(frame, metric), words], "x": words, "y": facts_of(own, name).title}
                    under = [*notes, *([OF_TEACHER] if cost == TEACHER_FLOPS else [])]
                    command = replace(choices, metric=metric).command("pareto")
                    found.append({**one, "points": marks, "notes": under, "command": command})
    return found


def _points(frame: Frame, arms: Sequence[tuple[int, Arm]], cost: str, metric: str) -> list[dict[str, Any]]:
    places = {id(arm): place for place, arm in arms}
    marks = []
    for data, group in enumerate(frame.comparable(arm for _, arm in arms)):
        known = points(group, cost, metric)
        kept = front([(spent, score) for _, spent, score in known])
        for (arm, spent, _), on in zip(known, kept, strict=True):
            mean: Any = mean_of(arm, arm.skill, metric)
            marks.append(
                {
                    "arm": places[id(arm)],
                    "x": drawn(spent),
                    **{"y": drawn(mean["value"]), "low": drawn(mean.get("low")), "high": drawn(mean.get("high"))},
                    "text": f"{with_interval(mean)}, n = {mean['n']}, {seeds_text([arm]).lower()}",
                    "cost": str(cost_cell(cost, spent)),
                    **{"front": on, "data": data},
                }
            )
    return marks


# --- curves ---


def arm_curves(frame: Frame) -> list[dict[str, Any]]:
    """For each skill the curves of its arms: means over seeds with their intervals, and the runs by themselves."""
    every = [
        (skill, [(place, arm) for place, arm in enumerate(frame.arms) if arm.skill == skill][:LINES])
        for skill in frame.skills
    ]
    most = max(12, min(100, POINTS // max(1, sum(len(arms) for _, arms in every) * CURVES)))
    return [found for skill, arms in every if (found := _group(skill, arms, most))["metrics"]]


def _group(skill: str, arms: Sequence[tuple[int, Arm]], most: int) -> dict[str, Any]:
    tables = [(place, arm, series(arm)) for place, arm in arms]
    long = dict.fromkeys(name for *_, own in tables for name, values in own.items() if len(values) > 1)
    names = ordered(list(long))[:CURVES]
    lines = [
        {"arm": place, "curves": {name: _mean(arm, own[name], most) for name in names if name in own}}
        for place, arm, own in tables
    ]
    notes = [BANDS, f"{seeds_text([arm for _, arm in arms])}."]
    notes += [f"The first {LINES} arms."] if len(arms) == LINES else []
    return {"group": skill, "metrics": names, "lines": lines, "notes": notes}


def _mean(arm: Arm, values: Any, most: int) -> Mapping[str, Any]:
    """The mean of an arm, its band, and the curves of its seeds where there are several."""
    mean, half = band(values)
    bounds = {"low": (mean - half).tolist(), "high": (mean + half).tolist()}
    found = dict(curve(values.index.tolist(), mean.tolist(), most, **bounds))
    if len(values.columns) > 1:
        found["seeds"] = {str(seed): curve(*_known(values[seed]), most) for seed in values.columns}
    return found


def _known(values: Any) -> tuple[list[int], list[float]]:
    values = values.dropna()
    return values.index.tolist(), values.tolist()


def unfinished_curves(jobs: Sequence[tuple[int, Job]]) -> list[dict[str, Any]]:
    """The curves of runs that have no results yet, by their place in the table of runs; LINES at most."""
    found = list(islice(_unfinished(jobs), LINES))
    names = ordered(list(dict.fromkeys(name for line in found for name in line["curves"])))[:CURVES]
    notes = ["Runs without results yet: one line each, of one seed."]
    return [{"group": UNFINISHED, "metrics": names, "lines": found, "notes": notes}] if found else []


def _unfinished(jobs: Sequence[tuple[int, Job]]) -> Iterator[dict[str, Any]]:
    for place, job in jobs:
        if job.results is not None:
            continue
        try:
            values = logged(job)
        except (ValueError, OSError):
            continue
        if values:
            curves = {name: curve(list(one), list(one.values()), 100) for name, one in values.items()}
            yield {"run": place, "label": f"{job.label} ({job.status})", "curves": curves}
