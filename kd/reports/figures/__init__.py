"""Figures of many runs, by name, at the size of a paper's column or page."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context

from kd.artifacts import write_atomically
from kd.reports.figures.curves import curves
from kd.reports.figures.differences import differences
from kd.reports.figures.front import fronts
from kd.reports.figures.heat import heat_map
from kd.reports.figures.positions import positions
from kd.reports.figures.ranks import rank_diagram
from kd.reports.figures.style import TYPE, Drawn
from kd.reports.frame import Frame
from kd.reports.sweep import Choices

UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same figure is the same file
FORMATS = tuple(UNDATED)
NO_FILE = re.compile(r"[^\w.+-]")  # in the name of one
FIGURES: dict[str, Callable[[Frame, Choices], list[Drawn]]] = {
    "heat_map": heat_map,
    "curves": curves,
    "differences": differences,
    "pareto": fronts,
    "ranks": rank_diagram,
    "positions": positions,
}


def write_figures(frame: Frame, choices: Choices, folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every figure that the runs have something for; returns the files, `<folder>/<name>.<format>`."""
    found = []
    for drawn in (one for draw in FIGURES.values() for one in draw(frame, choices)):
        _fix_layout(drawn)
        for form in formats:
            content = io.BytesIO()
            with rc_context(TYPE):
                drawn.figure.savefig(content, format=form, metadata=UNDATED[form])
            path = folder / f"{NO_FILE.sub('-', drawn.name)}.{form}"
            write_atomically(path, content.getvalue())
            found.append(path)
    return found


def _fix_layout(drawn: Drawn) -> None:
    """Lay the axes out once, at rounded places: the solver's last digits differ from one figure to the next."""
    with rc_context(TYPE):
        drawn.figure.draw_without_rendering()
    drawn.figure.set_layout_engine("none")
    for ax in drawn.figure.axes:
        left, bottom, width, height = (round(value, 4) for value in ax.get_position().bounds)
        ax.set_position((left, bottom, width, height))
