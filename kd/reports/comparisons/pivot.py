"""Means over seeds, with intervals: of every metric by arm, or of one metric by any two settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.intervals import over_seeds
from kd.reports.comparisons.costs import COSTS, OF_TRAINING, cost_cell, costs_of, mean_cost
from kd.reports.corrections import CORRECTIONS
from kd.reports.frame import Arm, Estimate, Frame, seeds_text
from kd.reports.grid import Cell, Grid, number
from kd.reports.paired import difference
from kd.reports.settings import ABSENT, TRAINED_ON

SEED_INTERVALS = (
    "Brackets are 95 % t intervals over seeds, on a scale that stays within the metric's bounds; they leave out the "
    "variation over problems."
)
ONE_SEED_EACH = "Brackets are 95 % intervals over items: one seed each, so there is no interval over seeds."
SOME_ONE_SEED = "A mean of one seed has no interval."
LEVEL = 0.05
MOST_TESTED = 400  # runs whose items are read to find the best of a column
BETTER = {True: "higher is better", False: "lower is better"}


def mean_of(arm: Arm, skill: str, metric: str, system: str = "after") -> Estimate | None:
    """The mean over seeds and its interval; of one seed, its own interval over items. None without a score."""
    found = list(arm.estimates(skill, metric, system).values())
    if len(found) < 2:
        return found[0] if found else None
    values, counts = [one["value"] for one in found], [one["n"] for one in found]
    mean, low, high = over_seeds(values, counts, arm.metric(metric).bounds)
    ends = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
    return {"value": mean, "n": max(counts), **ends}


def mean_cell(arm: Arm, mean: Estimate | None, *, several: bool, best: bool = False) -> Cell:
    """The cell of a mean; `several`: others of the table are over seeds, so that one seed alone has no interval."""
    if mean is None or len(arm.runs) > 1 or not several:
        return Cell.of(mean, best=best)
    return Cell(f"{number(mean['value'])} (one seed)", mean["value"], n=mean["n"], best=best)


def interval_notes(arms: Sequence[Arm]) -> list[str]:
    """Sentences on seeds and on what brackets are."""
    several = {len(arm.runs) > 1 for arm in arms}
    kind = [ONE_SEED_EACH] if several == {False} else [SEED_INTERVALS, *([SOME_ONE_SEED] if False in several else [])]
    return [f"{seeds_text(arms)}.", *kind] if arms else []


def items_note(cells: Sequence[Mapping[str, Any] | None]) -> str:
    """The number of items behind the scores, in words."""
    counts = sorted({one["n"] for one in cells if one is not None})
    if not counts:
        return "n = 0 items."
    return f"n = {counts[0]} items." if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} items."


# --- every metric ---


def means_grid(frame: Frame) -> Grid | None:
    """Rows: arms. Columns: the metrics of their own skill, and what training cost; None where nothing has two seeds."""
    if all(len(arm.runs) < 2 for arm in frame.arms):
        return None
    metrics = metrics_of(frame.arms)
    costs = costs_of(frame.arms)
    found = [[mean_of(arm, arm.skill, name) for name in metrics] for arm in frame.arms]
    rows = [
        [
            *(arm.values[name] for name in frame.columns),
            Cell.number(len(arm.runs), str(len(arm.runs))),
            *(mean_cell(arm, mean, several=True) for mean in cells),
            *(cost_cell(name, mean_cost(arm, name)) for name in costs),
        ]
        for arm, cells in zip(frame.arms, found, strict=True)
    ]
    header = [*frame.columns, "seeds", *(frame.arms[0].metric(name).title for name in metrics)]
    notes = [items_note([one for cells in found for one in cells]), *interval_notes(frame.arms), OF_TRAINING]
    titles = [*header, *(COSTS[name] for name in costs)]
    labels = len(frame.columns) + 1
    return Grid("Means over seeds", titles, rows, [*notes, *frame.notes], labels=labels, folds=True)


def metrics_of(arms: Sequence[Arm]) -> list[str]:
    """Metrics of the arms' own skills: of answers, of references, of agreement."""
    names: dict[str, None] = {}
    for arm in arms:
        for results in arm.results():
            names |= dict.fromkeys([*results["scores"].get(arm.skill, {}), *(results.get("agreement") or {})])
    of = {"answers": 0, "references": 1, "teacher": 2}
    subject = {name: next((a.metric(name).of for a in arms if a.estimates(a.skill, name)), "answers") for name in names}
    return sorted(names, key=lambda name: of[subject[name]])


# --- one metric by two settings ---


def default_axes(frame: Frame) -> tuple[str, str] | None:
    """Objective × skill where they vary, else the first two settings in which arms differ; None for fewer."""
    skill = TRAINED_ON in frame.columns
    others = [name for name in frame.columns if name != TRAINED_ON]
    if skill and others:
        return others[0], TRAINED_ON
    return (others[0], others[1]) if len(others) > 1 else None


def pivot_grid(
    frame: Frame,
    rows: str,
    columns: str,
    *,
    metric: str | None = None,
    system: str = "after",
    correction: str = "holm",
) -> Grid:
    """The mean of `metric` (none: each skill's own) by two settings.

    Settings beside the two name further rows: runs that differ in them are never averaged. The best of a column is bold
    where it differs from every other in a paired test, corrected for all comparisons of the table.

    Raises ValueError where the runs do not differ in a setting.
    """
    row, column = (known_column(frame, name) for name in (rows, columns))
    if row == column:
        raise ValueError(f"--pivot {rows},{columns}: rows and columns are the same; name two settings")
    labels = [row, *(name for name in frame.columns if name not in (row, column))]
    across = list(dict.fromkeys(arm.values[column] for arm in frame.arms))
    cells: dict[tuple[str, ...], dict[str, Arm]] = {}
    for arm in frame.arms:
        cells.setdefault(tuple(arm.values[name] for name in labels), {})[arm.values[column]] = arm
    names = {arm_id(arm): metric or arm.headline(arm.skill) or "" for arm in frame.arms}
    best, notes = best_of(
        [[(a, a.skill, names[arm_id(a)]) for a in _of(cells, name)] for name in across], system, correction
    )
    found = {arm_id(arm): mean_of(arm, arm.skill, names[arm_id(arm)], system) for arm in frame.arms}
    several = any(len(arm.runs) > 1 for arm in frame.arms)
    body = [[*key, *(_cell(found, arms.get(name), best, several) for name in across)] for key, arms in cells.items()]
    header = [*labels, *(_title(name, _of(cells, name), names) for name in across)]
    facts = frame.arms[0].metric(names[arm_id(frame.arms[0])])
    title = f"{facts.title if metric else 'Scores'} by {' × '.join((row, column))}"
    said = [f"{_directions(frame, names)}. {items_note(list(found.values()))}"]
    if system != "after":
        said.append(f"System: {system}.")
    return Grid(title, header, body, [*said, *interval_notes(frame.arms), *notes, *frame.notes], labels=len(labels))


def _directions(frame: Frame, names: Mapping[int, str]) -> str:
    """Which direction is better, by metric where they differ."""
    found = {
        arm.metric(names[arm_id(arm)]).title: BETTER[arm.metric(names[arm_id(arm)]).higher_is_better]
        for arm in frame.arms
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values())).capitalize()
    return "; ".join(f"{title}: {better}" for title, better in found.items())


def _of(cells: Mapping[tuple[str, ...], Mapping[str, Arm]], column: str) -> list[Arm]:
    return [arms[column] for arms in cells.values() if column in arms]


def _cell(found: Mapping[int, Estimate | None], arm: Arm | None, best: set[int], several: bool) -> str:
    if arm is None:
        return ABSENT
    return mean_cell(arm, found[arm_id(arm)], several=several, best=arm_id(arm) in best)


def _title(name: str, arms: Sequence[Arm], names: Mapping[int, str]) -> str:
    titles = dict.fromkeys(arm.metric(names[arm_id(arm)]).title for arm in arms)
    return f"{name}\n{', '.join(titles)}"


def known_column(frame: Frame, name: str) -> str:
    """A setting by the name that a user gives it, `skill` being that of the runs.

    Raises ValueError where the runs do not differ in it.
    """
    name = TRAINED_ON if name == "skill" else name
    if name not in frame.columns:
        known = ", ".join(frame.columns) or "none"
        raise ValueError(f"the runs do not differ in {name}; settings in which they differ: {known}")
    return name


def arm_id(arm: Arm) -> int:
    """The identity of an arm in a table."""
    return id(arm)


# --- the best of a column ---


def best_of(
    columns: Sequence[Sequence[tuple[Arm, str, str]]], system: str, correction: str
) -> tuple[set[int], list[str]]:
    """Ids of the arms that are better than all others of their column, and a sentence on the test.

    columns: of each, the arms with the skill and metric that they are compared by.
    """
    if len({id(job) for column in columns for arm, _, _ in column for job in arm.runs.values()}) > MOST_TESTED:
        return set(), [f"Nothing is bold: there are more than {MOST_TESTED} runs, of which none was tested."]
    values: list[float] = []
    owners: list[int] = []
    for column in columns:
        ranked = [(one, mean_of(*one, system)) for one in column]
        known = [(one, mean["value"]) for one, mean in ranked if mean is not None and mean["value"] is not None]
        if len(known) < 2:
            continue
        sign = 1 if known[0][0][0].metric(known[0][0][2]).higher_is_better else -1
        (first, skill, metric), _ = max(known, key=lambda pair: sign * pair[1])
        for (other, _, _), _ in known:
            if other is not first:
                found = difference(first, other, skill, metric, system)
                values.append(float("nan") if found is None or sign * found.value < 0 else found.p)
                owners.append(arm_id(first))
    name, correct = CORRECTIONS[correction]
    corrected = correct(values)
    kept = {owner for owner in owners}
    kept -= {owner for owner, p in zip(owners, corrected, strict=True) if not p < LEVEL}
    if not values:
        return set(), []
    return kept, [
        f"Bold: better than every other of its column, p < {LEVEL}, paired over items and seeds, "
        f"{name} for {len(values)} comparisons."
    ]
