"""The heat map of one metric by two settings, objective and skill where these vary."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context

from kd.reports.comparisons.pivot import default_axes, pivot_grid
from kd.reports.figures.style import PAGE, TYPE, Drawn, axes
from kd.reports.frame import Frame
from kd.reports.grid import Cell, number
from kd.reports.settings import TRAINED_ON
from kd.reports.sweep import Choices


def heat_map(frame: Frame, choices: Choices) -> list[Drawn]:
    """One figure: rows and columns as in the table `pivot`; none where runs differ in fewer than two settings.

    A column, or a row where these are skills, is coloured by its own scores, worst to best, since skills have scales of
    their own.
    """
    pair = tuple(choices.pivot.split(",")) if choices.pivot else default_axes(frame)
    if pair is None:
        return []
    grid = pivot_grid(frame, *pair, metric=choices.metric, system=choices.system, correction=choices.correction)  # type: ignore[arg-type]
    cells = [row[grid.labels :] for row in grid.rows]
    names = [", ".join(row[: grid.labels]) for row in grid.rows]
    by_row = grid.header[0] == TRAINED_ON
    lines = cells if by_row else [[row[i] for row in cells] for i in range(len(cells[0]))]
    skills = [row[0] for row in grid.rows] if by_row else [name.split("\n")[0] for name in grid.header[grid.labels :]]
    shades = np.array(
        [_shades(line, _higher(frame, skill, choices.metric)) for line, skill in zip(lines, skills, strict=True)]
    )
    shades = shades if by_row else shades.T
    with rc_context(TYPE):
        height = 0.6 + 0.34 * len(names)
        figure, [ax] = axes(
            PAGE,
            height,
            [*grid.notes, f"Colours: each {'row' if by_row else 'column'} by its own scores, dark is better."],
        )
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


def _higher(frame: Frame, skill: str, metric: str | None) -> bool:
    """Whether higher is better: of the metric, or of the skill's own; of all skills' where it is the name of none."""
    arm = next((one for one in frame.arms if one.skill == skill), frame.arms[0])
    return arm.metric(metric or arm.headline(arm.skill) or "").higher_is_better


def _shades(column: Sequence[str], higher: bool) -> list[float]:
    """0 for the worst score, 1 for the best, NaN for none; one half where all are the same."""
    values = np.array([np.nan if _value(cell) is None else _value(cell) for cell in column], dtype=float)
    if np.isnan(values).all():
        return values.tolist()
    low, high = np.nanmin(values), np.nanmax(values)
    shades = np.where(np.isnan(values), np.nan, 0.5) if high == low else (values - low) / (high - low)
    return (shades if higher else 1 - shades).tolist()


def _value(cell: str) -> float | None:
    return cell.value if isinstance(cell, Cell) else None


def _write(ax, x: int, y: int, cell: str, shade: float) -> None:
    best = isinstance(cell, Cell) and cell.best
    text = str(cell)
    if isinstance(cell, Cell) and cell.low is not None and cell.high is not None:
        text = f"{number(cell.value)}\n[{number(cell.low)}, {number(cell.high)}]"
    colour = "white" if shade > 0.55 else "black"
    ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=6.5, weight="bold" if best else "normal")
