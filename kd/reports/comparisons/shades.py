"""How dark the cells of a pivot are: those of one skill by one scale, since skills have scales of their own."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kd.reports.comparisons.pivot import facts_of, headline_of
from kd.reports.frame import Frame
from kd.reports.grid import Cell, Grid
from kd.reports.settings import TRAINED_ON


def line_of(frame: Frame, grid: Grid) -> Literal["row", "column", "table"]:
    """The cells of a pivot that share a scale: rows or columns where these are skills, or all of one skill."""
    if grid.header[0] == TRAINED_ON:
        return "row"
    skills = {arm.skill for arm in frame.arms}
    return "table" if len(skills) == 1 and skills.isdisjoint(_columns(grid)) else "column"


def coloured(frame: Frame, grid: Grid) -> str:
    """The sentence on the colours of a pivot."""
    line = line_of(frame, grid)
    return f"Colours: {'all scores' if line == 'table' else f'each {line} by its own scores'}, dark is better."


def pivot_shades(frame: Frame, grid: Grid, metric: str | None = None) -> np.ndarray:
    """Shades [rows, columns] of the pivot of `metric`, of each line 0 for the worst, 1 for the best."""
    cells = [row[grid.labels :] for row in grid.rows]
    line = line_of(frame, grid)
    if line == "table":
        every = shades([cell for row in cells for cell in row], _higher(frame, frame.arms[0].skill, metric))
        return np.array(every).reshape(len(cells), -1)
    lines = cells if line == "row" else [[row[i] for row in cells] for i in range(len(cells[0]))]
    skills = [row[0] for row in grid.rows] if line == "row" else _columns(grid)
    found = np.array([shades(one, _higher(frame, name, metric)) for one, name in zip(lines, skills, strict=True)])
    return found if line == "row" else found.T


def _columns(grid: Grid) -> list[str]:
    return [name.split("\n")[0] for name in grid.header[grid.labels :]]


def _higher(frame: Frame, skill: str, metric: str | None) -> bool:
    """Whether higher is better: of the metric, or of the skill's own; of all skills' where it is the name of none."""
    arms = [one for one in frame.arms if one.skill == skill] or list(frame.arms)
    return facts_of(arms, metric or headline_of(arms, arms[0].skill) or "top1").higher_is_better


def shades(line: Sequence[str], higher: bool) -> list[float]:
    """0 for the worst score, 1 for the best, NaN for none; one half where all are the same."""
    values = np.array([np.nan if _value(cell) is None else _value(cell) for cell in line], dtype=float)
    if np.isnan(values).all():
        return values.tolist()
    low, high = np.nanmin(values), np.nanmax(values)
    found = np.where(np.isnan(values), np.nan, 0.5) if high == low else (values - low) / (high - low)
    return (found if higher else 1 - found).tolist()


def _value(cell: str) -> float | None:
    return cell.value if isinstance(cell, Cell) else None
