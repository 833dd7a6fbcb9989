"""Tables for a terminal, and as Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Sequence
from itertools import chain
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kd.reports.grid import Cell, Grid
from kd.reports.latex import latex

PADDING = 3  # of a column in a terminal
WIDEST = 32  # a cell of text is folded beyond it
MOST_ROWS = 200  # in a terminal
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # but for the end of a line
TAG = re.compile(r"<(?=[A-Za-z/!?])")  # which Markdown would read as one of HTML's


# --- terminal ---


def terminal(grid: Grid, width: int) -> Group:
    """The table in a terminal of `width` characters.

    A column whose cells are all the same is one line under the table. Columns that do not fit beside one another follow
    below, each time after those that name the rows.
    """
    header, rows, notes = without_constants(grid)
    rows = without_hashes(rows)
    if len(rows) > MOST_ROWS:
        notes = [f"The first {MOST_ROWS} of {len(rows)} rows; --format csv has all.", *notes]
        rows = rows[:MOST_ROWS]
    header, rows = [_seen(cell) for cell in header], [[_seen(cell) for cell in row] for row in rows]
    labels = min(grid.labels, len(header))
    if grid.stacks and len(_bands(header, rows, labels, width)) > 1:
        header, rows, labels = _stacked(header, labels), [_stacked(row, labels) for row in rows], 1
    if _too_wide(header, rows, labels, width):
        header, rows, labels = _merged(header, rows, labels)
    bands = _bands(header, rows, labels, width)
    shown = bands[: grid.bands or len(bands)]
    left = list(dict.fromkeys(_line(header[i]) for i in chain(*bands) if i not in set(chain(*shown))))
    notes = [*([f"Too wide for this terminal: {', '.join(left)}; --format csv has all."] if left else []), *notes]
    under: list[RenderableType] = [Text(textwrap.fill(note, width, break_on_hyphens=False)) for note in notes]
    if grid.command:
        under.append(Text(f"Made by: {grid.command}", overflow="fold"))  # one line, to be copied
    title = Text(textwrap.fill(grid.title, width), style="bold")
    return Group(title, *(_table(header, rows, band) for band in shown if band), *under, Text(""))


def print_grid(grid: Grid, console: Console) -> None:
    """Print the table as wide as the console is."""
    console.print(terminal(grid, console.width))


def without_constants(grid: Grid) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes, where a column with the same text in all cells may have become a note (`Grid.folds`)."""
    places = range(len(grid.header))
    if len(grid.rows) < 3 or not grid.folds:
        return list(grid.header), [list(row) for row in grid.rows], list(grid.notes)
    same = [i for i in places if i >= grid.labels and len({str(row[i]) for row in grid.rows}) == 1]
    kept = [i for i in places if i not in same]
    facts = [f"{_line(grid.header[i])} {_line(grid.rows[0][i])}" for i in same if set(grid.rows[0][i]) - set("– \n")]
    notes = [f"In all rows: {'; '.join(facts)}."] if facts else []
    return [grid.header[i] for i in kept], [[row[i] for i in kept] for row in grid.rows], [*notes, *grid.notes]


def _stacked(row: Sequence[str], labels: int) -> list[str]:
    """A row with its first cells as the lines of one."""
    return ["\n  ".join(row[:labels]), *row[labels:]]


def without_hashes(rows: list[list[str]]) -> list[list[str]]:
    """The rows, with names of run folders without their hashes where these tell nothing apart."""
    hashed = all(row and re.search(r"-[0-9a-f]{12}$", row[0]) for row in rows)
    names = [row[0][:-13] for row in rows] if hashed else []
    if not names or len(set(names)) < len(rows):
        return rows
    return [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]


def _seen(text: str) -> str:
    """The text with control characters, such as a terminal would obey, as their numbers; a cell stays one."""
    shown = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text if shown == text else _like(text, shown)


def _like(cell: str, text: str) -> str:
    """Another text of the same cell."""
    return Cell(text, cell.value, cell.low, cell.high, cell.n, cell.best) if isinstance(cell, Cell) else text


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [min(WIDEST, max(map(_width, [header[i], *(row[i] for row in rows)]))) for i in range(len(header))]


def _too_wide(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int, width: int) -> bool:
    """Return whether the columns that name the rows leave no room for any other beside them."""
    widths = _widths(header, rows)
    widest = max(widths[labels:], default=0)
    return labels > 1 and sum(widths[:labels]) + widest + (labels + 1) * PADDING > width


def _merged(
    header: Sequence[str], rows: Sequence[Sequence[str]], labels: int
) -> tuple[list[str], list[list[str]], int]:
    """The columns that name the rows as one, a line for each."""
    names = [_line(name) for name in header[:labels]]
    lines = [
        "\n".join(f"{name} {_line(cell)}" if name else _line(cell) for name, cell in zip(names, row, strict=False))
        for row in rows
    ]
    title = "\n".join(filter(None, names))
    return [title, *header[labels:]], [[line, *row[labels:]] for line, row in zip(lines, rows, strict=True)], 1


def _bands(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int, width: int) -> list[list[int]]:
    """Places of the columns that stand beside one another."""
    widths = _widths(header, rows)
    start = list(range(labels))
    room = width - 1 - sum(widths[i] + PADDING for i in start)
    bands: list[list[int]] = [[]]
    left = room
    for i in range(labels, len(header)):
        if bands[-1] and widths[i] + PADDING > left:
            bands.append([])
            left = room
        bands[-1].append(i)
        left -= widths[i] + PADDING
    return [[*start, *band] for band in bands]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], band: Sequence[int]) -> Table:
    """Nothing in a cell is read as markup."""
    table = Table(box=box.SIMPLE_HEAD)
    for i in band:
        table.add_column(escape(header[i]), overflow="fold", max_width=WIDEST)
    for row in rows:
        table.add_row(*(f"[bold]{escape(row[i])}[/bold]" if _best(row[i]) else escape(row[i]) for i in band))
    return table


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _line(text: str) -> str:
    return " ".join(text.split())


def _best(cell: str) -> bool:
    return isinstance(cell, Cell) and cell.best


# --- files ---


def markdown(grid: Grid) -> str:
    """A pipe table; notes follow as paragraphs."""
    lines = [_pipes(grid.header), _pipes(["---"] * len(grid.header)), *map(_pipes, grid.rows)] if grid.header else []
    notes = [f"\n{note}" for note in grid.notes] + ([f"\n    {grid.command}"] if grid.command else [])
    return "\n".join([f"### {grid.title}\n", *lines, *notes]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    cleaned = (TAG.sub("&lt;", _seen(cell)).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    marked = (f"**{text}**" if _best(cell) else text for cell, text in zip(cells, cleaned, strict=True))
    return "| " + " | ".join(marked) + " |"


def records(grid: Grid) -> list[dict[str, Any]]:
    """A mapping for each row: texts, and value, low, high and n of numbers."""
    names = _names(grid)
    return [{name: _plain(cell) for name, cell in zip(names, row, strict=True)} for row in grid.rows]


def _names(grid: Grid) -> list[str]:
    """The names of the columns on one line, each once: a second `accuracy` is `accuracy (2)`."""
    names = [_line(name) for name in grid.header]
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, earlier, strict=True)]


def _plain(cell: str) -> Any:
    if not isinstance(cell, Cell):
        return str(cell)
    if cell.value is None:
        return None
    found = {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n}
    return {key: value for key, value in found.items() if value is not None} | {"best": cell.best}


def csv_table(grid: Grid) -> str:
    """A row for each row; of a number, its value and, in columns of their own, its interval and items."""
    columns = [_spread(name, [row[i] for row in grid.rows]) for i, name in enumerate(_names(grid))]
    header = [name for names, _ in columns for name in names]
    lines = [[cell for _, cells in columns for cell in cells[k]] for k in range(len(grid.rows))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


def _spread(name: str, cells: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns that one becomes, and its cells in them."""
    plain = list(map(_plain, cells))
    numbers = [cell for cell in plain if isinstance(cell, dict)]
    parts = [part for part in ("low", "high", "n") if any(part in cell for cell in numbers)]
    found = [[c["value"], *map(c.get, parts)] if isinstance(c, dict) else [c, *([None] * len(parts))] for c in plain]
    return [name, *(f"{name} {part}" for part in parts)], found


def json_tables(grids: Sequence[Grid]) -> str:
    """A list of tables: title, columns, rows (`records`), notes and command."""
    pages = [
        {
            "title": grid.title,
            "columns": _names(grid),
            "rows": records(grid),
            "notes": list(grid.notes),
            "command": grid.command,
        }
        for grid in grids
    ]
    return json.dumps(pages, indent=2, ensure_ascii=False) + "\n"


def rendered(grids: Sequence[Grid], form: str) -> str:
    """The text of tables as `markdown`, `latex`, `csv` or `json`."""
    if form == "json":
        return json_tables(grids)
    if form == "csv":
        return "\n".join(f"# {grid.title}\n{csv_table(grid)}" if len(grids) > 1 else csv_table(grid) for grid in grids)
    return "\n".join({"markdown": markdown, "latex": latex}[form](grid) for grid in grids)
