"""Progress on stderr: bars on a terminal; in a file, a line where something begins and one with its seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


class _Bytes(DownloadColumn):
    def render(self, task: Task) -> Text:
        return super().render(task) if task.total else Text()


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of items just done. Silent where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with _shown(*columns) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def activity(what: str) -> Iterator[Callable[[int, int], None]]:
    """A step of seconds or minutes that ends with a line: `what`, its bytes where they are known, and its seconds.

    Yields the function to call with the bytes done and the bytes in all; without a call the bar only moves.
    """
    started, known = time.monotonic(), 0
    if not sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
    with _shown(TextColumn("{task.description}"), BarColumn(10), _Bytes(), TimeElapsedColumn()) as progress:
        task = progress.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            nonlocal known
            known = total
            progress.update(task, completed=done, total=total)

        yield update
    amount = f"{size(known)} in " if known else ""
    print(f"{what}: {amount}{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def size(count: int) -> str:
    """Bytes in decimal units: "93.1 MB"."""
    return decimal(count)


def _shown(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=Console(file=sys.stderr), disable=not sys.stderr.isatty(), transient=True)
