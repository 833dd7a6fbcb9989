"""How dark the cells of a pivot are: each skill by its own scores, since skills have scales of their own."""

from collections.abc import Sequence

import numpy as np

from kd.reports.comparisons.pivot import facts_of, headline_of
from kd.reports.frame import Frame
from kd.reports.grid import Cell, Grid
from kd.reports.settings import TRAINED_ON


def line_of(grid: Grid) -> str:
    """The line of a pivot with one scale for all of its cells: its row where skills are rows, else its column."""
    return "row" if grid.header[0] == TRAINED_ON else "column"


def coloured(grid: Grid) -> str:
    """The sentence on the colours of a pivot."""
    return f"Colours: each {line_of(grid)} by its own scores, dark is better."


def pivot_shades(frame: Frame, grid: Grid, metric: str | None = None) -> np.ndarray:
    """Shades [rows, columns] of the pivot of `metric`, of each line 0 for the worst, 1 for the best."""
    cells = [row[grid.labels :] for row in grid.rows]
    by_row = line_of(grid) == "row"
    lines = cells if by_row else [[row[i] for row in cells] for i in range(len(cells[0]))]
    skills = [row[0] for row in grid.rows] if by_row else [name.split("\n")[0] for name in grid.header[grid.labels :]]
    found = np.array([shades(line, _higher(frame, name, metric)) for line, name in zip(lines, skills, strict=True)])
    return found if by_row else found.T


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
