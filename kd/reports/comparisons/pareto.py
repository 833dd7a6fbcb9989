"""Score against budget: the arms that no other beats in both (the Pareto front)."""

import math
from collections.abc import Sequence

from kd.reports.comparisons.costs import (
    OF_TEACHER,
    OF_TRAINING,
    TEACHER_FLOPS,
    TITLES,
    budgets_of,
    cost_cell,
    mean_cost,
    steps_of,
)
from kd.reports.comparisons.pivot import facts_of, headline_of, interval_notes, mean_of
from kd.reports.frame import Arm, Frame
from kd.reports.grid import Cell, Grid
from kd.reports.settings import TRAINED_ON

MARK = "*"  # beside the costs of an arm on the front
STEPS = "steps"


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, score), whether no other costs no more and scores no less, one of the two strictly."""
    return [not any(_beats(other, one) for other in points) for one in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def points(arms: Sequence[Arm], cost: str, metric: str | None = None) -> list[tuple[Arm, float, float]]:
    """(arm, cost, score) of the arms where both are known; the higher score is the better, so losses are negative."""
    found = []
    shared = headline_of(arms, arms[0].skill) if arms else None
    for arm in arms:
        name = metric or shared
        mean = None if name is None else mean_of(arm, arm.skill, name)
        spent = steps_of(arm) if cost == STEPS else mean_cost(arm, cost)
        if name is not None and mean is not None and spent is not None and not math.isnan(spent):
            found.append((arm, spent, mean["value"] if arm.metric(name).higher_is_better else -mean["value"]))
    return found


def pareto_grids(frame: Frame, metric: str | None = None) -> list[Grid]:
    """A table for each skill. Rows: arms. Columns: score and costs, marked where the arm is on that cost's front."""
    return [grid for skill in frame.skills if (grid := _of_skill(frame, skill, metric)) is not None]


def _of_skill(frame: Frame, skill: str, metric: str | None) -> Grid | None:
    arms = [arm for arm in frame.arms if arm.skill == skill]
    names = [name for name in frame.columns if name != TRAINED_ON]
    costs = [STEPS, *budgets_of(arms)]
    on_front: dict[str, set[int]] = {}
    for cost in costs:
        on_front[cost] = set()
        for group in frame.comparable(arms):
            known = points(group, cost, metric)
            marks = front([(spent, score) for _, spent, score in known])
            on_front[cost] |= {id(arm) for (arm, _, _), mark in zip(known, marks, strict=True) if mark}
    name = metric or headline_of(arms, skill)
    if len(arms) < 2 or name is None or not any(on_front.values()):
        return None
    rows = [
        [*(arm.values[n] for n in names), Cell.of(mean_of(arm, skill, name)), *_costs(arm, costs, on_front)]
        for arm in arms
    ]
    facts = facts_of(arms, name)
    header = [*names, facts.title, *(STEPS if cost == STEPS else TITLES[cost] for cost in costs)]
    rule = f"{MARK}: on the front, where no other arm costs no more and scores no worse."
    note = "" if facts.higher_is_better else " Lower scores are better."
    notes = [rule + note, *interval_notes(arms), OF_TRAINING, *([OF_TEACHER] if TEACHER_FLOPS in costs else [])]
    return Grid(f"{skill}: score against budget", header, rows, notes, len(names))


def _costs(arm: Arm, costs: Sequence[str], on_front: dict[str, set[int]]) -> list[Cell]:
    cells = []
    for cost in costs:
        value = steps_of(arm) if cost == STEPS else mean_cost(arm, cost)
        if value is None or math.isnan(value):
            cells.append(Cell("–"))
        else:
            cells.append(Cell(f"{cost_cell(cost, value)}{f' {MARK}' if id(arm) in on_front[cost] else ''}", value))
    return cells
