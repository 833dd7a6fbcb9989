"""A cache of measurements by content: over a sweep, the teacher and the untrained student are measured once."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pandas as pd

from kd.artifacts import cache_root, key, once, read_manifest
from kd.versions import versions

VERSION = 2  # part of every key: raise it when the same inputs are to give other numbers
CODE = ("kd.evaluation.evaluate", "kd.evaluation.cache")


def content_key(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of plain data (numbers, strings, lists, mappings) and of the evaluation's versions."""
    return key({"code": versions(*CODE), **content})


def kept(kind: str, content: Mapping[str, Any], suffix: str, write: Callable[[Path], None]) -> Path:
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
    """The table of this content and the seconds that it took to compute, now or when it was computed."""

    if not _cached.get():
        started = time.perf_counter()
        return compute(), time.perf_counter() - started

    def write(path: Path) -> None:
        path.write_text(json.dumps(compute().to_dict("list")), encoding="utf-8")

    path = kept(kind, content, ".json", write)
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))), read_manifest(path).cost["seconds"]
