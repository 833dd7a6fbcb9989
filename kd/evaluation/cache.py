"""Scores by content hash, so that over a sweep the teacher and the untrained student are measured once.

What is written is whole (temporary file, rename), and of several processes that want the same one computes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from kd.models.sources import cache_root
from kd.run_folder import write_atomically

SCHEMA = 1  # part of every key: raise it when the same inputs are to give other numbers


def content_key(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of plain data (numbers, strings, lists, mappings), whatever the order of its keys."""
    text = json.dumps({"schema": SCHEMA, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def once(path: Path, write: Callable[[Path], None]) -> Path:
    """`path`, written by `write(temporary path)` if no process has done so yet."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.exists():  # another process may have computed it while this one waited
            partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                write(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path


def entry(kind: str, content: Mapping[str, Any], suffix: str) -> Path:
    """Where something of this content is kept: `cache_root()/evaluation/<kind>/<key><suffix>`."""
    return cache_root() / "evaluation" / kind / f"{content_key(content)}{suffix}"


def remembered(
    kind: str, content: Mapping[str, Any], compute: Callable[[], pd.DataFrame]
) -> tuple[pd.DataFrame, float]:
    """The table of this content and the seconds that it took to compute, now or when it was computed."""

    def write(path: Path) -> None:
        start = time.perf_counter()
        columns = compute().to_dict("list")
        write_atomically(path, json.dumps({"seconds": time.perf_counter() - start, "columns": columns}))

    page = json.loads(once(entry(kind, content, ".json"), write).read_text(encoding="utf-8"))
    return pd.DataFrame(page["columns"]), page["seconds"]
