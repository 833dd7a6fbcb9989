"""The figure of paired differences to a baseline: a point and its interval for each arm."""

from matplotlib import rc_context

from kd.reports.comparisons.differences import difference_grid
from kd.reports.figures.style import MOST_ROWS, PAGE, TYPE, Drawn, axes, first_rows
from kd.reports.frame import Frame
from kd.reports.grid import Cell
from kd.reports.paired import parsed
from kd.reports.palette import COLOURS
from kd.reports.sweep import Choices


def differences(frame: Frame, choices: Choices) -> list[Drawn]:
    """One figure, of the rows of the table `differences`; none where nothing is paired."""
    baseline = None if choices.baseline is None else parsed(choices.baseline)
    grid = difference_grid(frame, baseline, metric=choices.metric, system=choices.system, correction=choices.correction)
    if grid is None:
        return []
    rows = [(", ".join(row[: len(frame.columns)]), cell) for row in grid.rows if (cell := _difference(row)) is not None]
    notes = [*first_rows(len(rows)), *(note.replace("bold:", "filled:") for note in grid.notes)]
    rows = rows[:MOST_ROWS]
    with rc_context(TYPE):
        figure, [ax] = axes(PAGE, 0.6 + 0.22 * len(rows), notes)
        for place, (_, cell) in enumerate(rows):
            colour = COLOURS[0] if cell.best else "#666666"
            ax.plot(cell.value or 0.0, place, "o", ms=4, color=colour, mfc=colour if cell.best else "white")
            if cell.low is not None and cell.high is not None:
                ax.plot([cell.low, cell.high], [place, place], lw=1.2, color=colour)
        ax.axvline(0, lw=0.8, color="black", zorder=0)
        ax.set_yticks(range(len(rows)), [name for name, _ in rows])
        ax.invert_yaxis()
        ax.set_xlabel(f"{grid.title[0].lower()}{grid.title[1:]} (filled: better, corrected p < 0.05)")
    return [Drawn("differences", figure)]


def _difference(row) -> Cell | None:
    """The cell with the difference: the first with an interval or a sign."""
    return next((cell for cell in row if isinstance(cell, Cell) and cell.value is not None and cell[0] in "+−"), None)
