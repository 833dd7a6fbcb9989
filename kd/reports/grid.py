"""A table: cells of text with the numbers behind them, and how numbers are printed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

Number = float | int
FILE_WIDTH = 120  # of a table that is printed into a file or a pipe, which have no width


class Cell(str):
    """The text of a cell, and the number that it shows.

    Attributes:
        value, low, high: the number and its interval; None where there is none.
        n: the items behind it.
        best: whether it is better than all others of its column, as the corrected test has it.
    """

    value: Number | None
    low: Number | None
    high: Number | None
    n: int | None
    best: bool

    def __new__(
        cls,
        text: str,
        value: Number | None = None,
        low: Number | None = None,
        high: Number | None = None,
        n: int | None = None,
        best: bool = False,
    ) -> "Cell":
        """A cell that shows `text`."""
        cell = super().__new__(cls, text)
        cell.value, cell.low, cell.high, cell.n, cell.best = value, low, high, n, best
        return cell

    @classmethod
    def of(cls, estimate: Mapping[str, Any] | None, *, best: bool = False) -> "Cell":
        """`value [low, high]`; a dash for no estimate."""
        if estimate is None or estimate.get("value") is None:
            return cls("–")
        low, high = (_finite(estimate.get(end)) for end in ("low", "high"))
        text = with_interval({"value": estimate["value"], "low": low, "high": high})
        return cls(text, estimate["value"], low, high, estimate.get("n"), best)

    @classmethod
    def number(cls, value: Number | None, text: str | None = None) -> "Cell":
        """A number without an interval."""
        return cls(number(value) if text is None else text, value)


@dataclass(frozen=True)
class Grid:
    """A table. Cells may have several lines.

    Attributes:
        labels: how many of the first columns name a row; a table too wide for its page repeats them.
        notes: sentences under the table.
        folds: whether a column whose cells are all the same may be one line under it.
        stacks: whether a terminal that is too narrow shows the columns that name a row below one another, as one.
        bands: how many parts a terminal shows of a table that is too wide for it; none: all.
        command: the command that prints it; none where the table is part of something else.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())
    labels: int = 1
    command: str | None = None
    folds: bool = False
    stacks: bool = False
    bands: int | None = None

    @property
    def footer(self) -> list[str]:
        """The notes, and the command as the last line."""
        return [*self.notes, *([f"Made by: {self.command}"] if self.command else [])]


def console() -> Console:
    """Standard output; a file or a pipe, which have no width, gets FILE_WIDTH, or COLUMNS where that is set."""
    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=FILE_WIDTH)


def _finite(value: Number | None) -> Number | None:
    return None if value is None or value != value else value


def number(value: Number | None) -> str:
    """Three significant digits; a dash for no value."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def signed(value: Number) -> str:
    """A difference, with its sign."""
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


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


def share(value: Number | None) -> str:
    """A share as a percentage; a dash for no value."""
    return "–" if value is None else f"{100 * value:.0f} %"
