"""Locks between processes: one writes at a path, the others wait or are refused."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep every other process away from what is written at `path`; with `wait`, once the one inside has left.

    The lock lies in `.locks` beside `path`, so that it outlives a folder that is renamed, and ends with the process.

    Raises:
        BlockingIOError: another process holds it and `wait` is False; names the path, the holder and the remedy.
    """
    beside = path.parent / ".locks" / path.name
    beside.parent.mkdir(parents=True, exist_ok=True)
    holder = beside.with_name(beside.name + ".holder")
    lock = filelock.FileLock(beside.with_name(beside.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        in_use = f"{path} is in use by {_holder(holder)}"
        if not wait:
            raise BlockingIOError(f"{in_use}; wait for that run or stop it, then start this one again") from None
        print(f"{in_use}: waiting", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # between its lock and its name
