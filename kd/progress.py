"""Progress on stderr: one line for each phase of a run, with its rate and the time that is left.

On a terminal the line of a phase that is running stays below everything that is printed; in a file, a pipe or a
notebook it is printed every few seconds, without control characters. A phase that is over leaves one line: its total,
its time, its rate.
"""

import io
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

from kd.program import is_rank_zero

WIDTH = 80  # of a line in a file
SHORTEST, LONGEST = 5.0, 60.0  # seconds between two lines in a file: a twentieth of the time so far, within these
BYTES = "bytes"
Number = float | int
_parts: ContextVar[tuple[str, ...]] = ContextVar("parts", default=())
_beside: ContextVar[bool] = ContextVar("beside", default=False)


class Phase:
    """A part of a run that takes time.

    Args:
        name: the words that its line begins with.
        total: the number of its items; None where that is not known.
        unit: the items' name in the plural; `bytes` are shown as MB; None where there are none to count.
        done: items that were done before it began.
        fraction: the share that was done before, where it is no share of the items (a budget may end a run early).

    Attributes:
        tokens: those read or generated since it began.
        notes: further facts, the most important first; those that do not fit are left out.
    """

    def __init__(
        self, name: str, total: Number | None, unit: str | None, *, done: Number = 0, fraction: Number | None = None
    ):
        self.name, self.total, self.unit = name, total, unit
        self.done = self.before = done
        self.fraction = self._fraction_before = self._share() if fraction is None else fraction
        self.tokens, self.notes = 0, list[str]()
        self.started = time.monotonic()

    def advance(self, items: Number) -> None:
        """Add items that were just done."""
        self.update(self.done + items)

    def update(self, done: Number, total: Number | None = None, *, fraction: Number | None = None) -> None:
        """Set the items that are done, and in all; `fraction` is as in the constructor."""
        self.done, self.total = done, self.total if total is None else total
        self.fraction = self._share() if fraction is None else fraction
        _display.tick()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.fraction >= 1

    def seconds_left(self, now: Number) -> Number | None:
        """The seconds until all is done, at the pace since it began; None as long as there is none."""
        gained = self.fraction - self._fraction_before
        return (now - self.started) * (1 - self.fraction) / gained if gained > 0 else None

    def line(self, now: Number, width: int) -> str:
        """The line of a phase that is running."""
        if self.unit is None:
            return _fitted(self.name, [duration(now - self.started)], self._rates(now), width)
        between = " of " if self.unit == BYTES else "/"
        count = self._amount(self.done) + ("" if self.total is None else f"{between}{self._amount(self.total)}")
        left, rates = self.seconds_left(now), self._rates(now)
        eta = None if left is None else f"ETA {duration(left)}"
        return _fitted(self.name, [self._named(count), *rates[:1]], [*rates[1:], *self.notes], width, eta)

    def summary(self, now: Number, width: int) -> str:
        """The line that is left of a phase."""
        count = self._amount(self.done) + (f"/{self._amount(self.total or 0)}" if self._is_short() else "")
        since = f", {self._amount(self.done - self.before)} of them" if self.before else ""
        took = duration(now - self.started)
        amount = f"{self._named(count)}{since} in {took}" if self.done else took
        return _fitted(self.name, [amount], [*reversed(self._rates(now, self.unit)), *self.notes], width)

    def _share(self) -> Number:
        return self.done / self.total if self.total else 0.0

    def _is_short(self) -> bool:
        return self.unit != BYTES and self.total is not None and self.done < self.total

    def _rates(self, now: Number, unit: str | None = None) -> list[str]:
        """Items and tokens a second, where there are any; `unit` names the items."""
        seconds, items = now - self.started, self.done - self.before
        if seconds <= 0:
            return []
        each = size(int(items / seconds)) if self.unit == BYTES else _digits(items / seconds)
        tokens = [f"{_digits(self.tokens / seconds)} tokens/s"] if self.tokens else []
        named = f"{each} {unit}/s" if unit not in (None, BYTES) else f"{each}/s"
        return [*([named] if items else []), *tokens]

    def _amount(self, count: Number) -> str:
        return size(int(count)) if self.unit == BYTES else f"{count:,.0f}"

    def _named(self, count: str) -> str:
        return count if self.unit == BYTES else f"{count} {self.unit}"


@contextmanager
def phase(
    what: str,
    total: Number | None = None,
    unit: str | None = None,
    *,
    done: Number = 0,
    fraction: Number | None = None,
    leaves: bool = True,
) -> Iterator[Phase]:
    """Show a phase while the block runs; arguments as in `Phase`.

    One inside another is shown below it and leaves no line; nor does one that ends with an exception, or that had
    items to count and none came.

    leaves: whether a line is left.
    """
    around = _display.phases[-1:]
    name = f"{around[0].name} · {what}" if around else labelled(what)
    shown = Phase(name, total, unit, done=done, fraction=fraction)
    if not is_rank_zero():
        yield shown
        return
    _display.begin(shown, leaves)
    finished = False
    try:
        yield shown
        finished = True
    finally:
        _display.end(shown, leaves and finished and (unit in (None, BYTES) or shown.done > 0))


@contextmanager
def counted_from_bars(shown: Phase) -> Iterator[None]:
    """Count by the bars that a library draws on stderr in the block (tqdm's "12/100"), which are not shown."""
    with redirect_stderr(_Bars(shown)):
        yield


class _Bars(io.StringIO):
    """A stream that reads the counts of the bars that are written to it."""

    def __init__(self, shown: Phase) -> None:
        super().__init__()
        self.shown = shown

    def write(self, text: str) -> int:
        if found := re.search(r"\| (\d+)/(\d+) \[", text):
            self.shown.update(int(found[1]), int(found[2]))
        return len(text)


@contextmanager
def part(name: str, *, beside: bool = False, shared: bool = False) -> Iterator[None]:
    """Put `name` before the lines of all phases in the block: the part of the run, as the
    baseline or a job.

    beside: whether other processes write to the same terminal; lines are then printed as into a file.
    shared: whether it belongs to no part around it, as a model that several runs use.
    """
    around = () if shared else _parts.get()
    tokens = _parts.set((*around, name)), _beside.set(beside or _beside.get())
    try:
        yield
    finally:
        _parts.reset(tokens[0])
        _beside.reset(tokens[1])


def labelled(text: str) -> str:
    """The text after the names of the parts that it belongs to."""
    return " · ".join([*_parts.get(), text])


def count_tokens(count: int) -> None:
    """Add tokens that were just read or generated to the innermost phase."""
    if _display.phases:
        _display.phases[-1].tokens += count
        _display.tick()


def remark(text: str, stream: Any = None) -> None:
    """Print a sentence on a stream (stdout) after the names of its parts; on a terminal it is broken between words."""
    stream, text = stream or sys.stdout, labelled(text).replace(f"{Path.home()}/", "~/")
    if stream.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    print(text, file=stream, flush=True)


def is_animated() -> bool:
    """Return whether stderr is a terminal of this process alone, on which a line can be drawn again."""
    in_notebook = "JPY_PARENT_PID" in os.environ  # its cells run commands in a terminal that draws nothing again
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not in_notebook and not _beside.get()


def size(count: int) -> str:
    """Bytes in decimal units: "93.1 MB"."""
    return decimal(count)


def duration(seconds: Number) -> str:
    """Seconds as "0.4 s", "12 s", "1 min 05 s" or "2 h 05 min"."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Display:
    """The phases that are running, the innermost last, and where their lines go."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._live: Live | None = None
        self._stream, self._width = sys.stderr, WIDTH
        self._next = 0.0  # when a file gets the next line

    def begin(self, shown: Phase, leaves: bool) -> None:
        """Show another phase, inside those that are shown."""
        first = not self.phases
        self.phases.append(shown)
        if not first:
            return
        self._next, self._stream, self._width = shown.started + SHORTEST, sys.stderr, WIDTH
        if is_animated():
            console = Console(file=sys.stderr)
            self._width = console.width - 1  # a full line would be wrapped
            self._live = _live(console, self._drawn)
            self._live.start()
        elif shown.unit is None and leaves:
            self._print(f"{shown.name} ...")  # there will be no count

    def tick(self) -> None:
        """Print the innermost phase's line into a file, if it is time."""
        now = time.monotonic()
        if self._live is None and self.phases and now >= self._next and not self.phases[-1].is_over:
            self._print(self.phases[-1].line(now, WIDTH))
            self._next = now + min(LONGEST, max(SHORTEST, (now - self.phases[0].started) / 20))

    def end(self, shown: Phase, leaves: bool) -> None:
        """End a phase; the outermost leaves its line, if it leaves one."""
        self.phases.remove(shown)
        if self.phases:
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        if leaves:
            self._print(shown.summary(time.monotonic(), self._width))

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _drawn(self) -> Text:
        now = time.monotonic()
        lines = [shown.line(now, self._width) for shown in list(self.phases)]
        return Text("\n".join(lines), no_wrap=True, overflow="crop")


_display = _Display()


def _live(console: Console, drawn: Callable[[], Text]) -> Live:
    """The lines on a terminal, kept below what is printed there; they go without a trace."""
    return Live(
        console=console,
        get_renderable=drawn,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else into the file that it belongs to
    )


def _digits(number: Number) -> str:
    """Three significant digits, without an exponent."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"


def _fitted(name: str, facts: Sequence[str], more: Sequence[str], width: int, last: str | None = None) -> str:
    """Name, facts, as many more as fit, and the last; the name is cut where nothing else helps."""
    ends = [] if last is None else [last]
    for kept in range(len(more), -1, -1):
        line = "  ".join([name, *facts, *more[:kept], *ends])
        if len(line) <= width:
            return line
    rest = "  ".join(["", *facts, *ends])
    return name[: max(0, width - len(rest) - 1)] + "…" + rest
