"""The heat map of one metric by two settings, objective and skill where these vary."""

from dataclasses import replace

import numpy as np
from matplotlib import rc_context

from kd.reports.comparisons.pivot import default_axes, pivot_grid
from kd.reports.comparisons.shades import coloured, pivot_shades
from kd.reports.figures.style import MOST_ROWS, PAGE, TYPE, Drawn, axes, first_rows
from kd.reports.frame import Frame
from kd.reports.grid import Cell, number
from kd.reports.sweep import Choices


def heat_map(frame: Frame, choices: Choices) -> list[Drawn]:
    """One figure: rows and columns as in the table `pivot`; none where runs differ in fewer than two settings.

    The cells of a skill are coloured by its own scores, worst to best, since skills have scales of their own.
    """
    pair = tuple(choices.pivot.split(",")) if choices.pivot else default_axes(frame)
    if pair is None:
        return []
    grid = pivot_grid(frame, *pair, metric=choices.metric, system=choices.system, correction=choices.correction)  # type: ignore[arg-type]
    if grid is None:
        return []
    grid = replace(grid, rows=grid.rows[:MOST_ROWS], notes=[*first_rows(len(grid.rows)), *grid.notes])
    cells = [row[grid.labels :] for row in grid.rows]
    names = [", ".join(row[: grid.labels]) for row in grid.rows]
    shades = pivot_shades(frame, grid, choices.metric)
    with rc_context(TYPE):
        height = 0.6 + 0.34 * len(names)
        figure, [ax] = axes(PAGE, height, [*grid.notes, coloured(frame, grid)])
        ax.imshow(np.ma.masked_invalid(shades), cmap="cividis_r", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(cells[0])), grid.header[grid.labels :])
        ax.set_yticks(range(len(names)), names)
        ax.set_title(grid.title)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                _write(ax, x, y, cell, shades[y, x])
    return [Drawn("heat_map", figure)]


def _write(ax, x: int, y: int, cell: str, shade: float) -> None:
    best = isinstance(cell, Cell) and cell.best
    text = str(cell)
    if isinstance(cell, Cell) and cell.low is not None and cell.high is not None:
        text = f"{number(cell.value)}\n[{number(cell.low)}, {number(cell.high)}]"
    colour = "white" if shade > 0.55 else "black"
    ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=6.5, weight="bold" if best else "normal")
