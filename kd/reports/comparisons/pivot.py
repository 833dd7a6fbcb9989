"""Means over seeds, with intervals: of every metric by arm, or of one metric by any two settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.intervals import over_seeds
from kd.metrics.table import Metric
from kd.reports.comparisons.costs import COSTS, OF_TRAINING, cost_cell, costs_of, mean_cost
from kd.reports.comparisons.jobs import MOST_COLUMNS
from kd.reports.corrections import CORRECTIONS
from kd.reports.crossed import Difference
from kd.reports.frame import IDENTITY, Arm, Estimate, Frame, seeds_text
from kd.reports.grid import Cell, Grid, number
from kd.reports.paired import difference, left_out_note
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


def facts_of(arms: Sequence[Arm], name: str) -> Metric:
    """The facts of a metric, of the first arm that recorded them."""
    recorded = (arm for arm in arms if any(name in (results.get("metrics") or {}) for results in arm.results()))
    return next(recorded, arms[0]).metric(name)


def headline_of(arms: Sequence[Arm], skill: str) -> str | None:
    """The metric by which arms are compared on a skill: the first headline that all share, else the first of all.

    None where nothing was measured.
    """
    names = list(dict.fromkeys(name for arm in arms if (name := arm.headline(skill)) is not None))
    measured = [arm for arm in arms if arm.headline(skill) is not None]
    shared = [name for name in names if all(arm.estimates(skill, name) for arm in measured)]
    return next(iter([*shared, *names]), None)


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
    """Rows: arms. Columns: the metrics of their own skill, and what training cost; None where nothing has two seeds.

    Of many skills the first metric alone, with its name.
    """
    if all(len(arm.runs) < 2 for arm in frame.arms):
        return None
    alone, costs = many_skills(frame), costs_of(frame.arms)
    metrics = metrics_of(frame.arms)
    own = [[arm.headline(arm.skill) or ""] if alone else metrics for arm in frame.arms]
    found = [[mean_of(arm, arm.skill, name) for name in names] for arm, names in zip(frame.arms, own, strict=True)]
    rows = [
        [
            *(arm.values[name] for name in frame.columns),
            Cell.number(len(arm.runs), str(len(arm.runs))),
            *([arm.metric(names[0]).title] if alone else []),
            *(mean_cell(arm, mean, several=True) for mean in cells),
            *(cost_cell(name, mean_cost(arm, name)) for name in costs),
        ]
        for arm, names, cells in zip(frame.arms, own, found, strict=True)
    ]
    scores = ["metric", "score"] if alone else [facts_of(frame.arms, name).title for name in metrics]
    header = [*frame.columns, "seeds", *scores]
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
    """Objective × skill where they vary, skill × objective for many skills, else the first two settings in which arms
    differ; None for fewer."""
    skill = TRAINED_ON in frame.columns
    others = [name for name in frame.columns if name != TRAINED_ON]
    if skill and others:
        return (TRAINED_ON, others[0]) if many_skills(frame) else (others[0], TRAINED_ON)
    return (others[0], others[1]) if len(others) > 1 else None


def many_skills(frame: Frame) -> bool:
    """Return whether the skills are rows of a table, as they are too many to be columns."""
    return len(frame.skills) > MOST_COLUMNS


def pivot_grid(
    frame: Frame,
    rows: str,
    columns: str,
    *,
    metric: str | None = None,
    system: str = "after",
    correction: str = "holm",
) -> Grid | None:
    """The mean of `metric` (none: each skill's own) by two settings.

    Settings beside the two name further rows: runs that differ in them are never averaged. The best of a column, or of
    a row where these are skills, is bold where it differs from every other in a paired test, corrected for all
    comparisons of the table. Skills that are rows name their metric beside them, where it is not the same of all. None
    where no arm has a score.

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
    shared = {skill: headline_of([a for a in frame.arms if a.skill == skill], skill) for skill in frame.skills}
    fallback = metric or next(filter(None, shared.values()), None)
    if fallback is None:
        return None
    names = {arm_id(arm): metric or shared[arm.skill] or fallback for arm in frame.arms}
    by_row = row == TRAINED_ON
    compared = _compared(frame, [name for name in labels if name != IDENTITY] if by_row else [column])
    best, notes = best_of(
        [[(arm, arm.skill, names[arm_id(arm)]) for arm in group] for group in compared],
        system,
        correction,
        line="row" if by_row else "column",
    )
    found = {arm_id(arm): mean_of(arm, arm.skill, names[arm_id(arm)], system) for arm in frame.arms}
    several = any(len(arm.runs) > 1 for arm in frame.arms)
    body = [[*key, *(_cell(found, arms.get(name), best, several) for name in across)] for key, arms in cells.items()]
    header = [*labels, *(_title(name, _of(cells, name), names) for name in across)]
    titles = [_titles([*arms.values()], names) for arms in cells.values()]
    if by_row and len(set(titles)) > 1:
        header = [*labels, "metric", *across]
        body = [[*line[: len(labels)], title, *line[len(labels) :]] for title, line in zip(titles, body, strict=True)]
        labels = [*labels, "metric"]
    facts = facts_of(frame.arms, names[arm_id(frame.arms[0])])
    title = f"{facts.title if metric else 'Scores'} by {' × '.join((row, column))}"
    said = [f"{_directions(frame, names)}. {items_note(list(found.values()))}"]
    if system != "after":
        said.append(f"System: {system}.")
    under = [*said, *interval_notes(frame.arms), *notes, *frame.notes]
    return Grid(title, header, body, under, labels=len(labels), stacks=by_row)


def _compared(frame: Frame, settings: Sequence[str]) -> list[list[Arm]]:
    """The arms that have these settings, and evaluated items, in common."""
    lines: dict[tuple[str, ...], list[Arm]] = {}
    for arm in frame.arms:
        lines.setdefault(tuple(arm.values[name] for name in settings), []).append(arm)
    return [group for line in lines.values() for group in frame.comparable(line)]


def _directions(frame: Frame, names: Mapping[int, str]) -> str:
    """Which direction is better, and the metrics of the other one."""
    metrics = [arm.metric(names[arm_id(arm)]) for arm in frame.arms]
    found = {metric.title: metric.higher_is_better for metric in metrics}
    lower = [title for title, higher in found.items() if not higher]
    if not lower or len(lower) == len(found):
        return BETTER[not lower].capitalize()
    return f"Higher is better, but of {', '.join(lower)} lower"


def _of(cells: Mapping[tuple[str, ...], Mapping[str, Arm]], column: str) -> list[Arm]:
    return [arms[column] for arms in cells.values() if column in arms]


def _cell(found: Mapping[int, Estimate | None], arm: Arm | None, best: set[int], several: bool) -> str:
    if arm is None:
        return ABSENT
    return mean_cell(arm, found[arm_id(arm)], several=several, best=arm_id(arm) in best)


def _title(name: str, arms: Sequence[Arm], names: Mapping[int, str]) -> str:
    return f"{name}\n{_titles(arms, names)}"


def _titles(arms: Sequence[Arm], names: Mapping[int, str]) -> str:
    return ", ".join(dict.fromkeys(facts_of(arms, names[arm_id(arm)]).title for arm in arms))


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
    columns: Sequence[Sequence[tuple[Arm, str, str]]], system: str, correction: str, *, line: str = "column"
) -> tuple[set[int], list[str]]:
    """Ids of the arms that are better than all others of their column, or row, and a sentence on the test.

    columns: of each, the arms with the skill and metric that they are compared by; of other data, others.
    """
    if len({id(job) for column in columns for arm, _, _ in column for job in arm.runs.values()}) > MOST_TESTED:
        return set(), [f"Nothing is bold: there are more than {MOST_TESTED} runs, of which none was tested."]
    values: list[float] = []
    owners: list[int] = []
    differences: list[Difference] = []
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
                differences += [] if found is None else [found]
    name, correct = CORRECTIONS[correction]
    corrected = correct(values)
    kept = {owner for owner in owners}
    kept -= {owner for owner, p in zip(owners, corrected, strict=True) if not p < LEVEL}
    if not values:
        return set(), []
    return kept, [
        f"Bold: better than every other of its {line}, p < {LEVEL}, paired over items and seeds, "
        f"{name} for {len(values)} comparisons.",
        *left_out_note(differences),
    ]
