"""What all figures share: size, type, colours that the colour-blind tell apart, and the line under the picture."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd.reports.frame import Arm
from kd.reports.palette import COLOURS, DASHES, MARKERS

COLUMN, PAGE = 3.3, 6.8  # inches: the width of one column, and of a page of two
MOST = len(COLOURS) * len(DASHES)  # arms in a figure, of which no two are drawn alike
TYPE: Any = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kd",  # the same figure is the same file
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "figure.dpi": 200,
}
MOST_ROWS = 60  # of a figure with a row for each arm
LINE, SIGN = 0.13, 0.049  # inches: the height of a line of the caption, and the mean width of a letter there


class Drawn(NamedTuple):
    """A figure and the name of its file."""

    name: str
    figure: Figure


def drawn_with(colour: int) -> dict[str, Any]:
    """Colour, marker and dash of the arm with this number; no two of the first 28 are alike in all three."""
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "marker": MARKERS[colour % len(MARKERS)],
        "linestyle": DASHES[colour // len(COLOURS) % len(DASHES)],
    }


def drawn(arms: Sequence[Arm]) -> tuple[Sequence[Arm], list[str]]:
    """The arms that a figure shows, MOST at most, and a sentence on those that it does not."""
    return arms[:MOST], [f"The first {MOST} of {len(arms)} arms."] if len(arms) > MOST else []


def first_rows(count: int) -> list[str]:
    """A sentence on the rows that a figure does not show, where there are any."""
    return [f"The first {MOST_ROWS} of {count} rows."] if count > MOST_ROWS else []


def legend(figure: Figure, ax: Axes, labels: Sequence[tuple[int, str]], *, lines: bool = True) -> None:
    """Name arms above the figure, by the number that they are drawn with; `lines`: with their dashes."""
    marks = [drawn_with(i) | ({} if lines else {"linestyle": ""}) for i, _ in labels]
    handles = [
        ax.plot([], [], label=name or "all runs", ms=4, **mark)[0]
        for (_, name), mark in zip(labels, marks, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=_across([name for _, name in labels]))


def legend_height(labels: Sequence[str]) -> float:
    """The height of a legend in inches."""
    return 0.17 * -(-len(labels) // _across(labels))


def _across(labels: Sequence[str]) -> int:
    """The names that stand beside one another."""
    width = max(map(len, labels), default=1) * 0.065 + 0.5
    return max(1, min(4, len(labels), int(PAGE / width)))


def axes(
    width: float, height: float, caption: Sequence[str], *, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, and under it the caption: n, seeds, and what the intervals are."""
    lines = textwrap.wrap(" ".join(caption), int(width / SIGN))
    below = LINE * (len(lines) + 0.5)
    with rc_context(TYPE):
        figure = Figure(figsize=(width, height + below), layout="constrained")
        figure.get_layout_engine().set(rect=(0, below / (height + below), 1, 1 - below / (height + below)))  # type: ignore[union-attr, call-arg]
        found = figure.subplots(rows, columns, squeeze=False)
        figure.text(0.02, 0.01, "\n".join(lines), fontsize=6.5, va="bottom", color="#444444", linespacing=1.2)
    return figure, list(found.flat)
