"""The gap to the teacher that training closed, by skill."""

import math

from kd.intervals import over_seeds
from kd.reports.comparisons.pivot import facts_of, headline_of, interval_notes
from kd.reports.frame import Arm, Frame
from kd.reports.grid import Cell, Grid, share
from kd.reports.settings import TRAINED_ON

MEANING = (
    "0 % is the student before training (of bits per byte and agreement: the floor), 100 % the teacher; a dash: the "
    "teacher is no better."
)
INTERVALS = "Brackets are 95 % t intervals over seeds."


def gaps_grid(frame: Frame, metric: str | None = None) -> Grid | None:
    """Rows: the settings beside the skill. Columns: skills. A cell has the mean over seeds with its t interval."""
    labels = [name for name in frame.columns if name != TRAINED_ON]
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    names = {skill: metric or headline_of(_on(frame, skill), skill) for skill in frame.skills}
    for arm in frame.arms:
        rows.setdefault(tuple(arm.values[name] for name in labels), {})[arm.skill] = _cell(arm, names[arm.skill])
    known = [skill for skill in frame.skills if any(r.get(skill, Cell("–")).value is not None for r in rows.values())]
    if not known:
        return None
    body = [[*(key or ("all",)), *(found.get(skill, Cell("–")) for skill in known)] for key, found in rows.items()]
    titles = {skill: facts_of(_on(frame, skill), name).title for skill, name in names.items() if name is not None}
    header = [*(labels or [""]), *(f"{skill}\n{titles[skill]}" for skill in known)]
    seeds = interval_notes(frame.arms)[:1]
    return Grid("Gap closed", header, body, [MEANING, *seeds, INTERVALS], labels=len(labels) or 1)


def _on(frame: Frame, skill: str) -> list[Arm]:
    return [arm for arm in frame.arms if arm.skill == skill]


def _cell(arm: Arm, name: str | None) -> Cell:
    found = [results["gap_closed"].get(arm.skill, {}).get(name) for results in arm.results()]
    values = [value for value in found if value is not None]
    if not values:
        return Cell("–")
    mean, low, high = over_seeds(values, [1] * len(values), (-math.inf, math.inf))
    if math.isnan(low):
        return Cell(share(mean), mean)
    return Cell(f"{share(mean)} [{100 * low:.0f}, {100 * high:.0f}]", mean, low, high)
