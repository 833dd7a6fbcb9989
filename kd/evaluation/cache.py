"""A cache of measurements by content: over a sweep, the teacher and the untrained student are measured once."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pandas as pd

from kd.artifacts import Cost, cache_root, key, once, read_manifest
from kd.generators.account import Meter, Spent, charge, metered
from kd.versions import versions

VERSION = 2  # part of every key: raise it when the same inputs are to give other numbers
CODE = ("kd.evaluation.evaluate", "kd.evaluation.cache")


def content_key(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of plain data (numbers, strings, lists, mappings) and of the evaluation's versions."""
    return key({"code": versions(*CODE), **content})


def kept(kind: str, content: Mapping[str, Any], suffix: str, write: Callable[[Path], Any]) -> Path:
    """The file `cache_root()/evaluation/<kind>/<key><suffix>` of this content, verified; computed if it is missing."""
    path = cache_root() / "evaluation" / kind / f"{content_key(content)}{suffix}"
    once(path, write, kind="measurement")
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
        path.write_text(json.dumps(measured().to_dict("list")), encoding="utf-8")
        return {name: spent for name, spent in meter.spent._asdict().items() if name != "seconds"}

    path = kept(kind, content, ".json", write)
    cost = read_manifest(path).cost
    charge(Spent.of(cost).less(meter.spent))
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))), cost["seconds"]
