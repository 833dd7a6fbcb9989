"""Requests to a teacher's server, sent again while it is restarted."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from queue import Empty, LifoQueue
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit
from weakref import finalize

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from kd.progress import remark
from kd.teachers.served.wire import TEACHER, VERSION, About, name_of

PAUSE, LONGEST_PAUSE = 0.25, 4.0  # seconds before a request is sent again: the first time, and at most
ADDRESS = "correct teacher.url"
GATEWAY = frozenset({502, 503, 504})  # of a proxy that does not reach the server


@dataclass(frozen=True)
class Connection:
    """The way to a teacher's server; no number depends on it.

    Args:
        timeout: seconds without a byte from the server after which a request has failed.
        patience: seconds for which a request that reached no server, or was cut off, is sent again, as while the
            server is restarted.
        at_once: requests under way at a time: the server reads one while the reply to another is sent.
        held: states of micro-batches that may wait in this process's memory.
    """

    timeout: PositiveFloat | PositiveInt = 120.0
    patience: NonNegativeFloat | NonNegativeInt = 120.0
    at_once: Annotated[int, Field(ge=1, le=64)] = 2
    held: Annotated[int, Field(ge=1, le=4096)] = 8


class Reply(NamedTuple):
    """A reply of status 200: its body, and the teacher that the server names."""

    body: bytes
    teacher: str


class Client:
    """The requests of one run to one server.

    Args:
        url: of the server.
        name: of its teacher (`kd.teachers.served.wire.name_of`), which each reply has to have.
        connection: see `Connection`.
    """

    def __init__(self, url: str, name: str, connection: Connection):
        self.url, self.name, self.connection = url.rstrip("/"), name, connection
        self._place = urlsplit(self.url)
        self._open: LifoQueue[HTTPConnection] = LifoQueue()
        finalize(self, _close, self._open)

    def about(self) -> About:
        """The server's teacher. Raises ValueError where it is another one, or no teacher's server answers."""
        body = self.get("/teacher")
        try:
            about = About(**json.loads(body))
        except (ValueError, TypeError):
            raise ValueError(
                f"{self.url} is no server of a teacher, as `python -m kd.serve` starts; {ADDRESS}"
            ) from None
        if about.version != VERSION:
            raise ValueError(
                f"{self.url} has version {about.version} of the requests for states, and this process {VERSION}; start "
                "both from the same kd"
            )
        return about

    def get(self, path: str) -> bytes:
        """The body at a path. Raises as `states`."""
        return self._sent("GET", path, None)

    def states(self, query: str, body: bytes) -> bytes:
        """The body of the states of a request.

        Raises:
            ConnectionError, TimeoutError: no server answers within `patience`.
            ValueError: it serves another teacher, or refuses the request.
        """
        return self._sent("POST", f"/states?{query}", body)

    def _sent(self, method: str, path: str, body: bytes | None) -> bytes:
        end, pause, remarked = time.monotonic() + self.connection.patience, PAUSE, False
        while True:
            try:
                return self._once(method, path, body)
            except (OSError, HTTPException) as error:
                _close(self._open)  # those to a server that was restarted
                if time.monotonic() + pause > end:
                    raise self._lost(error) from None
                if not remarked:
                    remark(
                        f"teacher: {self._cause(error)}; the request is sent again for {self.connection.patience:g} s"
                    )
                remarked = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _once(self, method: str, path: str, body: bytes | None) -> bytes:
        try:
            open_one = self._open.get_nowait()
        except Empty:
            kind = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
            open_one = kind(self._place.hostname or "", self._place.port, timeout=self.connection.timeout)
        try:
            open_one.request(method, self._place.path + path, body)
            response = open_one.getresponse()
            found, status = response.read(), response.status
        except BaseException:
            open_one.close()
            raise
        self._open.put(open_one)
        if status in GATEWAY:
            raise ConnectionError(f"status {status}")
        self._check(status, found, response.getheader(TEACHER))
        return found

    def _check(self, status: int, body: bytes, teacher: str | None) -> None:
        if status != 200:
            reason = " ".join(body[:300].decode(errors="replace").split())
            remedy = "lower data.max_tokens" if status == 500 else ADDRESS
            raise ValueError(f"{self.url} answers {status}: {reason}; {remedy}")
        if teacher is None:
            raise ValueError(f"{self.url} is no server of a teacher, as `python -m kd.serve` starts; {ADDRESS}")
        if (found := name_of(teacher)) != self.name:
            raise ValueError(
                f"{self.url} serves the teacher {found}, but teacher.identity={self.name}; start the server with the "
                "teacher of this run (its weights, dtype and tokenizer count), or correct teacher.identity"
            )

    def _cause(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{self.url} was silent for teacher.connection.timeout={self.connection.timeout:g} s"
        if isinstance(error, ConnectionRefusedError):
            return f"no server answers at {self.url}"
        return f"{self.url} broke off ({' '.join(str(error).split())[:100] or type(error).__name__})"

    def _lost(self, error: Exception) -> Exception:
        kind: Callable[[str], Any] = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
        return kind(
            f"{self._cause(error)}, for teacher.connection.patience={self.connection.patience:g} s; start it again "
            "(python -m kd.serve, with the same words), and this command: a run goes on from its last checkpoint"
        )


def _close(connections: LifoQueue[HTTPConnection]) -> None:
    with suppress(Empty):
        while True:
            connections.get_nowait().close()
