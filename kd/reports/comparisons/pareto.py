"""Score against budget: the arms that no other beats in both (the Pareto front)."""

from collections.abc import Sequence

from kd.reports.comparisons.costs import COSTS, OF_TRAINING, cost_cell, costs_of, mean_cost, steps_of
from kd.reports.comparisons.pivot import interval_notes, mean_of
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
    for arm in arms:
        name = metric or arm.headline(arm.skill)
        mean = None if name is None else mean_of(arm, arm.skill, name)
        spent = steps_of(arm) if cost == STEPS else mean_cost(arm, cost)
        if name is not None and mean is not None and spent is not None:
            found.append((arm, spent, mean["value"] if arm.metric(name).higher_is_better else -mean["value"]))
    return found


def pareto_grids(frame: Frame, metric: str | None = None) -> list[Grid]:
    """A table for each skill. Rows: arms. Columns: score and costs, marked where the arm is on that cost's front."""
    return [grid for skill in frame.skills if (grid := _of_skill(frame, skill, metric)) is not None]


def _of_skill(frame: Frame, skill: str, metric: str | None) -> Grid | None:
    arms = [arm for arm in frame.arms if arm.skill == skill]
    names = [name for name in frame.columns if name != TRAINED_ON]
    costs = [STEPS, *costs_of(arms)]
    on_front: dict[str, set[int]] = {}
    for cost in costs:
        on_front[cost] = set()
        for group in frame.comparable(arms):
            known = points(group, cost, metric)
            marks = front([(spent, score) for _, spent, score in known])
            on_front[cost] |= {id(arm) for (arm, _, _), mark in zip(known, marks, strict=True) if mark}
    if len(arms) < 2 or not any(on_front.values()):
        return None
    rows = []
    for arm in arms:
        name = metric or arm.headline(skill) or ""
        rows.append(
            [*(arm.values[n] for n in names), Cell.of(mean_of(arm, skill, name)), *_costs(arm, costs, on_front)]
        )
    facts = arms[0].metric(metric or arms[0].headline(skill) or "")
    header = [*names, facts.title, *(STEPS if cost == STEPS else COSTS[cost] for cost in costs)]
    rule = f"{MARK}: on the front, where no other arm costs no more and scores no worse."
    note = "" if facts.higher_is_better else " Lower scores are better."
    return Grid(
        f"{skill}: score against budget", header, rows, [rule + note, *interval_notes(arms), OF_TRAINING], len(names)
    )


def _costs(arm: Arm, costs: Sequence[str], on_front: dict[str, set[int]]) -> list[Cell]:
    cells = []
    for cost in costs:
        value = steps_of(arm) if cost == STEPS else mean_cost(arm, cost)
        plain = Cell("–") if value is None else cost_cell(cost, value)
        cells.append(Cell(f"{plain}{f' {MARK}' if id(arm) in on_front[cost] else ''}", value))
    return cells
