"""Replies on disk: each is kept as soon as it arrives, so that no request is paid twice."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WAIT = 60.0  # seconds that a process waits for another one to write


class Kept(NamedTuple):
    """A reply's body, and the seconds that the server took."""

    content: str
    seconds: float


class ReplyStore:
    """The replies of one model: an sqlite file in WAL mode, which several threads and processes may use at a time.

    A reply is on disk when `put` returns; a process that is killed loses none of those. The file holds requests and
    replies as text; no header, and so no key of an account, is in it.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        self._file = sqlite3.connect(path, timeout=WAIT, check_same_thread=False, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=FULL")
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS replies "
            "(key TEXT PRIMARY KEY, request TEXT, content TEXT, seconds REAL, at REAL) WITHOUT ROWID"
        )

    def get(self, key: str) -> Kept | None:
        """The reply to the request of this key, if there is one."""
        with self._lock:
            row = self._file.execute("SELECT content, seconds FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else Kept(*row)

    def put(self, key: str, request: str, reply: Kept) -> None:
        """Keeps a reply. `request`: its body, for readers of the file."""
        with self._lock:
            self._file.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", (key, request, *reply, time.time())
            )

    def __len__(self) -> int:
        with self._lock:
            return self._file.execute("SELECT count(*) FROM replies").fetchone()[0]

    def requests(self) -> Iterator[tuple[str, str]]:
        """Request and reply of every entry."""
        with self._lock:
            rows = self._file.execute("SELECT request, content FROM replies").fetchall()
        yield from rows
