"""The page while runs go on: `python -m kd.reports serve PATH...` serves it to this machine alone, and only that.

It is made again when run folders changed, and only while a browser shows it.
"""

import argparse
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kd.artifacts import key
from kd.errors import in_one_sentence, sentence
from kd.reports.frame import frame_of
from kd.reports.page.content import content
from kd.reports.page.document import document, encoded, read_once
from kd.reports.paired import item_table
from kd.reports.runs import Job, is_run, is_sweep
from kd.reports.sweep import Choices
from kd.runs.job_record import read_record

HOST = "127.0.0.1"
PORT = 8765
PAUSE = 2.0  # seconds between two looks at the folders, at least
REST = 5  # times as long as it took to make the page, it is not made again: runs need the processors
READ = ("DONE", "results.json", "metrics.csv", "config.yaml", "overrides.yaml")


class Live:
    """The page of some paths, made again where their files changed. Requests share it."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self.lock = threading.Lock()
        nothing = content(frame_of([]), Choices(paths=self.paths))
        self.made: tuple[str, dict[str, Any]] = "", nothing  # the state, and the content that it names
        self.next = 0.0  # the time of the next look
        self.refresh()

    def refresh(self) -> None:
        """Look at the folders, if it is time and no other request does, and make the page again if they changed."""
        if time.monotonic() < self.next or not self.lock.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            state = signature(self.paths)
            if state != self.made[0]:
                self.made = state, self._content()
            now = time.monotonic()
            self.next = now + max(PAUSE, REST * (now - began))
        except (OSError, ValueError):  # a folder went away, or a file is being written: the page stays as it is
            self.next = time.monotonic() + PAUSE
        finally:
            self.lock.release()

    def _content(self) -> dict[str, Any]:
        item_table.cache_clear()  # a run that was run again lies in the same folder
        jobs: list[Job] = []
        problems = []
        for path in self.paths:
            try:
                jobs += read_once([path])
            except (ValueError, OSError) as error:  # no run is there yet, or a file is being written
                problems.append(f"{sentence(error)}.")
        found = content(frame_of(jobs), Choices(paths=self.paths))
        words = " ".join(["python -m kd.reports serve", *self.paths])
        return {**found, "command": words, "problems": [*problems, *found["problems"]]}


def signature(paths: Sequence[str]) -> str:
    """A word that changes when a run, or a job of a sweep, appears or goes on."""
    return key({"files": [list(one) for path in paths for one in _files(Path(path))]})[:16]


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files that the page is made of."""
    folders = [path] if is_run(path) else sorted(one for one in path.iterdir() if one.is_dir())
    if is_sweep(path):
        records = sorted((path / "jobs").glob("*.json"))
        yield from filter(None, map(_stamp, records))
        folders = [folder for record in records if (folder := _run_of(record, path)) is not None]
    yield from filter(None, (_stamp(folder / name) for folder in folders for name in READ))


def _stamp(file: Path) -> tuple[str, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return str(file), found.st_size, found.st_mtime_ns


def _run_of(record: Path, sweep: Path) -> Path | None:
    """The run folder of a job; None where it has none yet, or the record cannot be read."""
    try:
        name = read_record(record)["run_folder"]
    except (ValueError, OSError):
        return None
    return None if name is None else sweep / name


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the page, its content as JSON and its state; nothing else is served, and nothing is written."""

    server: "PageServer"
    server_version = "kd"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with one of the three; 404 for another path, 403 for another host, as a foreign page would have."""
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(HTTPStatus.FORBIDDEN, "this page is served under 127.0.0.1 and localhost alone")
            return
        made = {"/": self._page, "/content.json": self._content, "/state": self._state}.get(self.path.partition("?")[0])
        if made is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.server.live.refresh()
        body, kind = made()
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _page(self) -> tuple[bytes, str]:
        state, found = self.server.live.made
        return document(found, live=state).encode(), "text/html"

    def _content(self) -> tuple[bytes, str]:
        return encoded(self.server.live.made[1]).encode(), "application/json"

    def _state(self) -> tuple[bytes, str]:
        return self.server.live.made[0].encode(), "text/plain"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""


class PageServer(ThreadingHTTPServer):
    """Serves a live page on 127.0.0.1; port 0 takes any that is free."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, live: Live, port: int = PORT):
        self.live = live
        try:
            super().__init__((HOST, port), Handler)
        except OverflowError:
            raise ValueError(
                f"--port {port} is no port; take one of 1024 to 65535, or 0 for any that is free"
            ) from None
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ValueError(f"port {port} cannot be had ({why}); take another, as in --port {port + 1}") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a sentence on a request that failed; nothing of a browser that went away."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            print(f"caution: a request failed: {sentence(error)}", file=sys.stderr, flush=True)

    @property
    def address(self) -> str:
        """The address that a browser opens."""
        return f"http://{HOST}:{self.server_port}/"


def main(arguments: Sequence[str]) -> None:
    """Serve until Ctrl-C."""
    found = argparse.ArgumentParser(prog="python -m kd.reports serve", description=__doc__)
    found.add_argument("paths", nargs="+", metavar="PATH", help="run, sweep or outputs folder")
    found.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free")
    found.add_argument("--open", action="store_true", help="open the page in the browser")
    options = found.parse_args(arguments)
    with in_one_sentence():
        missing = next((path for path in options.paths if not Path(path).is_dir()), None)
        if missing is not None:
            raise ValueError(f"{missing} is no folder; name a run, a sweep or the folder above runs")
        server = PageServer(Live(options.paths), options.port)
    print(f"Page: {server.address} (Ctrl-C ends it)", flush=True)
    if options.open:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("Ended.")
    finally:
        server.server_close()
