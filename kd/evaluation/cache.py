"""A cache of measurements by content: over a sweep, the teacher and the untrained student are measured once."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from kd.artifacts import Cost, cache_root, key, once, read_manifest
from kd.generators.account import Meter, Spent, charge, metered
from kd.progress import phase
from kd.versions import versions
from kd.workers.copies import Copies

VERSION = 2  # part of every key: raise it when the same inputs are to give other numbers
CODE = ("kd.evaluation.evaluate", "kd.evaluation.cache")
KIND = "measurement"


def content_key(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of plain data (numbers, strings, lists, mappings) and of the evaluation's versions."""
    return key({"code": versions(*CODE), **content})


def _path(kind: str, content: Mapping[str, Any], suffix: str) -> Path:
    return cache_root() / "evaluation" / kind / f"{content_key(content)}{suffix}"


def kept(kind: str, content: Mapping[str, Any], suffix: str, write: Callable[[Path], Any]) -> Path:
    """The file `cache_root()/evaluation/<kind>/<key><suffix>` of this content, verified; computed if it is missing."""
    path = _path(kind, content, suffix)
    once(path, write, kind=KIND)
    return path


_cached: ContextVar[bool] = ContextVar("cached", default=True)


@contextmanager
def uncached() -> Iterator[None]:
    """Compute within the block whatever is `remembered`, and keep nothing."""
    token = _cached.set(False)
    try:
        yield
    finally:
        _cached.reset(token)


def remembered(
    kind: str, content: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
) -> tuple[pd.DataFrame, float]:
    """The table of this content and the seconds that it took to compute, now or when it was computed.

    Tokens and FLOPs that are charged meanwhile (`kd.generators.account`) are kept with it. Every open meter is charged
    with these and with the seconds, whether the table is computed or read.
    """
    meter = Meter()

    def measured() -> pd.DataFrame:
        with metered(meter):
            return compute()

    if not _cached.get():
        started = time.perf_counter()
        return measured(), time.perf_counter() - started

    def write(path: Path) -> Cost:
        _write(measured(), path)
        return {name: spent for name, spent in meter.spent._asdict().items() if name != "seconds"}

    path = kept(kind, content, ".json", write)
    cost = read_manifest(path).cost
    charge(Spent.of(cost).less(meter.spent))
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))), cost["seconds"]


def _write(table: pd.DataFrame, path: Path) -> None:
    path.write_text(json.dumps(table.to_dict("list")), encoding="utf-8")


# --- tables that are computed in parts ---


@dataclass(frozen=True)
class Part:
    """Rows of a table that are computed, and kept, together: a task that is the same in every process.

    Attributes:
        content: names the rows, as of `remembered`.
        size: the number of items that they are of.
        compute: gives the rows of a model, and calls `progress` with the number of items just finished.
    """

    content: Mapping[str, Any]
    size: int
    compute: Callable[..., pd.DataFrame]

    def answered(self, model: Any) -> tuple[pd.DataFrame, Spent]:
        """The rows of a model and their cost, with the seconds that they took."""
        started = time.perf_counter()
        with metered() as meter:
            table = self.compute(model, progress=_unseen)
        return table, meter.spent._replace(seconds=time.perf_counter() - started)


def _unseen(items: int) -> None:
    """The progress of a process that shows none."""


def remembered_parts(
    kind: str, parts: Sequence[Part], model: Any, *, named: str, shown: tuple[str, str], copies: Copies | None = None
) -> tuple[pd.DataFrame, float]:
    """The tables of all parts (`remembered`), one below another, and the seconds of all together.

    Args:
        named: the model's identity.
        shown: the phase, and what it counts.
        copies: processes that compute the parts that are not kept, in place of this one; each is kept when it arrives.
    """
    missing = [one for one in parts if not (_cached.get() and _path(kind, one.content, ".json").exists())]
    total, left = (sum(part.size for part in some) for some in (parts, missing))
    with ExitStack() as stack:
        advance = _unseen
        if missing:
            advance = stack.enter_context(phase(shown[0], total, shown[1], done=total - left)).advance
        if copies is not None and missing and _cached.get():
            for part, table, spent in copies.answered(model, named, missing):
                kept(kind, part.content, ".json", partial(_arrived, table, spent))
                advance(part.size)
        found = [remembered(kind, one.content, partial(one.compute, model, progress=advance)) for one in parts]
    return pd.concat([table for table, _ in found], ignore_index=True), sum(seconds for _, seconds in found)


def _arrived(table: pd.DataFrame, spent: Spent, path: Path) -> Cost:
    """Write what another process has computed. Returns its cost."""
    _write(table, path)
    return spent._asdict()
