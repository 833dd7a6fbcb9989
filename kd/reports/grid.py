"""A table of text, shown in a terminal or written as markdown, and how its numbers are printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Grid:
    """Cells may have several lines. `notes` are sentences under the table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())

    def rich(self) -> Table:
        """The table for the terminal; nothing in a cell is read as markup."""
        caption = escape("\n".join(self.notes)) or None
        table = Table(title=escape(self.title), caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
        for name in self.header:
            table.add_column(escape(name), overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """A pipe table; notes follow as paragraphs."""
        lines = [_pipes(self.header), _pipes(["---"] * len(self.header)), *map(_pipes, self.rows)]
        notes = [f"\n{note}" for note in self.notes]
        return "\n".join([f"### {self.title}\n", *lines, *notes]) + "\n"


def console() -> Console:
    """Standard output; wide enough for a table where it is a file or a pipe, which have no width to fit."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=260)


def _pipes(cells: Sequence[str]) -> str:
    cleaned = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return "| " + " | ".join(cleaned) + " |"


def number(value: float | None) -> str:
    """Three significant digits; a dash for no value."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def interval(estimate: Mapping[str, Any]) -> str:
    """`[low, high]`, or nothing where there is none."""
    if estimate.get("low") is None or estimate.get("high") is None:
        return ""
    return f"[{number(estimate['low'])}, {number(estimate['high'])}]"


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """`value [low, high]` on one line; a dash for no estimate."""
    if estimate is None:
        return "–"
    return f"{number(estimate['value'])} {interval(estimate)}".strip()


def with_interval_and_n(estimate: Mapping[str, Any] | None) -> str:
    """`value n=…` with the interval on a second line; a dash for no estimate."""
    if estimate is None:
        return "–"
    return f"{number(estimate['value'])} n={estimate['n']}\n{interval(estimate)}".strip()


def share(value: float | None) -> str:
    """A share as a percentage; a dash for no value."""
    return "–" if value is None else f"{100 * value:.0f} %"
