"""Servers of a teacher: in a process of its own, and in a thread, there with faults."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kd.models.language_model import LanguageModel
from kd.teachers.served.client import Connection
from kd.teachers.served.server import ServedModel, listening
from kd.teachers.served.teacher import Served
from kd.teachers.served.wire import name_of
from kd.teachers.white_box import WhiteBox
from tests import runs

ROOT = Path(__file__).parents[2]
OF_TEACHER = [word for word in runs.SMALL if word.lstrip("+").startswith("teacher.")]


class Process:
    """`python -m kd.serve` with the teacher of `tests.runs.config`, and what it printed."""

    def __init__(
        self, *words: str, port: int = 0, teacher: Sequence[str] = ("teacher=tiny", *OF_TEACHER, "trainer=cpu")
    ):
        command = [sys.executable, "-m", "kd.serve", f"--port={port}", *teacher, *words]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.words = next((line.split() for line in lines if line.startswith("teacher=served ")), [])
        assert self.words, self.end()[1]
        self.url, self.identity = (word.partition("=")[2] for word in self.words[1:])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def node(self, **settings: Any) -> dict[str, Any]:
        return node(self.url, self.identity, **settings)

    def end(self) -> tuple[str, str]:
        self.process.kill()
        return self.process.communicate(timeout=60)


@contextmanager
def process(*words: str, **settings: Any) -> Iterator[Process]:
    """A server of its own, killed at the end."""
    found = Process(*words, **settings)
    try:
        yield found
    finally:
        found.end()


def node(url: str, identity: str, dtype: str | None = None, **connection: Any) -> dict[str, Any]:
    """The section `teacher` of a run that reads it."""
    way = {"_target_": "kd.teachers.served.client.Connection", "timeout": 60.0, "patience": 60.0, **connection}
    settings = {"url": url, "identity": identity, "dtype": dtype, "connection": way}
    return {"_target_": "kd.teachers.served.teacher.Served", **settings, "prepare": None, "licence": None}


@contextmanager
def serving(
    model: LanguageModel, wrong: Callable[[bytes], bytes] | None = None
) -> Iterator[tuple[Served, ServedModel]]:
    """A teacher, and the server in a thread that it reads; `wrong` changes the states of each reply."""
    served = ServedModel(WhiteBox(model), torch.device("cpu"))
    if wrong is not None:
        right, change = served.states, wrong
        served.states = lambda body, query: change(right(body, query))  # type: ignore[method-assign]
    with listening(served, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield teacher(f"http://127.0.0.1:{server.server_address[1]}", name_of(served.about.teacher)), served
        server.shutdown()


def teacher(url: str, identity: str, dtype: Any = None, **connection: Any) -> Served:
    """The run's side."""
    return Served(url=url, identity=identity, dtype=dtype, connection=Connection(**{"patience": 0.5, **connection}))
