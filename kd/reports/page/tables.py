"""Tables and curves as JSON: texts for the reader, numbers to sort and to draw by."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kd.reports.grid import Cell, Grid
from kd.reports.render import without_constants

DIGITS = 5  # significant ones of a number that is drawn


def table(grid: Grid, **more: Any) -> dict[str, Any]:
    """A table; a column with the same text in all cells is a note where the grid folds such columns.

    more: further fields.
    """
    header, rows, notes = without_constants(grid)
    return {
        "title": grid.title,
        "columns": header,
        "rows": [[cell(one) for one in row] for row in rows],
        "labels": grid.labels,
        "notes": notes,
        "command": grid.command,
        **more,
    }


def cell(one: str) -> str | list[Any]:
    """The text alone, or [text, value, low, high, n, best] of a number, without what is missing at its end."""
    if not isinstance(one, Cell) or drawn(one.value) is None:
        return str(one)
    found = [str(one), *map(drawn, (one.value, one.low, one.high)), one.n, 1 if one.best else None]
    while found[-1] is None:
        found.pop()
    return found


def drawn(value: float | int | None) -> float | int | None:
    """A number to be drawn, of DIGITS significant digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def thinned(values: Sequence[float], most: int) -> list[int]:
    """The places of at most `most` values: the least and the greatest of each of most / 2 stretches, in order.

    So a curve keeps its peaks; the first and the last value are among them.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    plain = np.asarray(values, dtype=float)
    low, high = (np.where(np.isfinite(plain), plain, end) for end in (np.inf, -np.inf))
    edges = np.linspace(1, count - 1, max(1, (most - 2) // 2) + 1).astype(int).tolist()
    places = {0, count - 1}
    for start, end in pairwise(edges):
        if end > start:
            places |= {start + int(low[start:end].argmin()), start + int(high[start:end].argmax())}
    return sorted(places)


def curve(steps: Sequence[int], values: Sequence[float], most: int, **bounds: Sequence[float]) -> Mapping[str, Any]:
    """A curve of at most `most` points: `x`, `y`, and further lists of the same length (`low`, `high`)."""
    kept = thinned(values, most)
    found: dict[str, Any] = {"x": [int(steps[i]) for i in kept], "y": [drawn(values[i]) for i in kept]}
    for name, ends in bounds.items():
        if any(math.isfinite(end) for end in ends):
            found[name] = [drawn(ends[i]) for i in kept]
    return found
