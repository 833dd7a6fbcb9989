"""The worker: a small, single-threaded process that forks one confined child for each request.

It is started as a separate program (`kd.sandbox.pool`), imports the modules of verifiers before any untrusted text
arrives, and keeps the next child ready, already confined. It reads requests as length-prefixed pickles from its
standard input, which only its parent writes, and responds with length-prefixed json. It ends with its input, and its
child with it: so no process outlives a parent that was killed.
"""

import gc
import importlib
import json
import os
import pickle
import resource
import select
import shutil
import signal
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.sandbox.child import Settings, described, serve
from kd.sandbox.confinement import Confinement
from kd.sandbox.limits import Limits

LENGTH = struct.Struct(">I")
LOOK = 0.02  # seconds between two looks at the scratch folder
ENTRIES = 1000  # files and folders that a scratch folder may hold


class Child:
    """A forked process and the pipes to it."""

    def __init__(self, settings: Settings, prepared: dict[bytes, Any]):
        self.limits = settings.limits
        self.scratch = settings.scratch if settings.files else None
        request, self.request = os.pipe()
        self.sent = False
        self.result, result = os.pipe()
        self.out, out = os.pipe()
        self.err, err = os.pipe()
        source, self.stdin = self._standard_input()
        ends = (source, out, err, request, result)
        self.pid = os.fork()
        if self.pid == 0:
            serve(ends, settings, prepared)
        for descriptor in ends:
            os.close(descriptor)

    def _standard_input(self) -> tuple[int, int]:
        """A file without name, opened for reading and for writing; the null device where there is no scratch folder."""
        if self.scratch is None:
            return os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
        path = f"{self.scratch}/.stdin"
        writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        reading = os.open(path, os.O_RDONLY)
        os.unlink(path)
        return reading, writing

    def ask(self, request: dict[str, Any]) -> None:
        """Hand over the request."""
        os.write(self.stdin, request.pop("stdin", "").encode())
        self.sent = True
        try:
            with os.fdopen(self.request, "wb") as stream:
                pickle.dump(request, stream)
        except BrokenPipeError:
            pass  # it has ended already; why is found when it is waited for

    def collect(self, parent: int, *, to_the_end: bool) -> dict[str, Any]:
        """Read the child's output until it has answered (or, `to_the_end`, has ended) or a limit is reached."""
        kept = {self.result: bytearray(), self.out: bytearray(), self.err: bytearray()}
        poller, open_, fault = select.poll(), set(kept), ""
        for descriptor in (*kept, parent):
            poller.register(descriptor, select.POLLIN)
        start = time.monotonic()
        while open_ and not (b"\n" in kept[self.result] and not to_the_end):
            left = start + self.limits.seconds - time.monotonic()
            fault = fault or ("timeout" if left <= 0 else "disk" if self._full() else "")
            if fault:
                break
            for descriptor, _ in poller.poll(1000 * min(left, LOOK if self.scratch else left)):
                if descriptor == parent:
                    raise EOFError  # a parent writes only after it has been answered
                chunk = os.read(descriptor, 1 << 16)
                kept[descriptor] += chunk[: self.limits.output - len(kept[descriptor])]
                if not chunk:
                    poller.unregister(descriptor)
                    open_.discard(descriptor)
        texts = {name: kept[end].decode(errors="replace") for name, end in (("stdout", self.out), ("stderr", self.err))}
        answer = {} if fault else _parsed(bytes(kept[self.result]), self.limits.output)
        return {**texts, **answer, "fault": fault, "seconds": time.monotonic() - start}

    def _full(self) -> bool:
        if self.scratch is None:
            return False
        entries, size = 0, 0
        for folder, folders, files in os.walk(self.scratch):
            entries += len(folders) + len(files)
            for name in files:
                try:
                    size += 512 * os.lstat(f"{folder}/{name}").st_blocks
                except OSError:
                    continue  # it is gone
            if entries > ENTRIES or size > self.limits.disk:
                return True
        return False

    def end(self) -> tuple[int, resource.struct_rusage]:
        """Kills the child if it still runs; returns its wait status and resource usage."""
        os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        for descriptor in (self.result, self.out, self.err, self.stdin, *[self.request] * (not self.sent)):
            os.close(descriptor)
        return status, usage


def _parsed(result: bytes, longest: int) -> dict[str, Any]:
    """The child's answer, or an empty one. The evaluated text may have written anything in its place."""
    if len(result) == longest:
        return {"status": "raised", "error": f"its value is longer than {longest} bytes"}
    if not result:
        return {}
    try:
        answer = json.loads(result)
        return {key: answer[key] for key in ("status", "error", "value") if key in answer or key == "status"}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"status": "raised", "error": "it wrote something else in the place of its answer"}


def explained(answer: dict[str, Any], status: int, usage: resource.struct_rusage, limits: Limits) -> None:
    """Sets the status and error in the `answer` of a child that has sent none."""
    cpu = usage.ru_utime + usage.ru_stime
    by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if answer["fault"] == "disk":
        answer |= {"status": "disk", "error": f"it wrote more than {limits.disk} bytes or {ENTRIES} files"}
    elif cpu > limits.cpu_seconds - 0.5 and by in (signal.SIGKILL, signal.SIGXCPU):
        answer |= {"status": "timeout", "error": f"it was stopped after {limits.cpu_seconds} s of processor time"}
    elif answer["fault"] == "timeout":
        answer |= {"status": "timeout", "error": f"it was stopped after {limits.seconds:g} s"}
    elif by:
        answer |= {"status": "killed", "error": f"it was ended by {signal.Signals(by).name}"}
    else:
        answer |= {"status": "exit", "error": f"it ended with exit code {os.waitstatus_to_exitcode(status)}"}


class Server:
    """Answers the requests of one parent."""

    def __init__(self, settings: Settings, source: int, sink: int):
        self.settings, self.source, self.sink = settings, source, sink
        self.prepared: dict[bytes, Any] = {}
        self.spare: Child | None = None

    def serve(self) -> None:
        """Answer requests until the parent closes its end."""
        try:
            while (request := self._read()) is not None:
                self._write(self._prepare(request) or self._answer(request))
                self._renew()
        except (EOFError, BrokenPipeError):
            pass  # the parent has gone
        finally:
            if self.spare is not None:
                self.spare.end()
            shutil.rmtree(self.settings.scratch, ignore_errors=True)

    def _prepare(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Builds the called function, once; returns an answer where that fails."""
        target = request.get("target")
        if target is None or target in self.prepared:
            return None
        try:
            module, name, setup = pickle.loads(target)
            function: Any = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            self.prepared[target] = function if setup is None else function(*setup)
        except Exception as error:
            return {"status": "broken", "error": described(error)}
        gc.freeze()
        if self.spare is not None:
            self.spare.end()
            self.spare = None
        return None

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self.spare = self.spare or Child(self.settings, self.prepared)
        code = request["kind"] == "run"
        for name, text in request.pop("files", {}).items():
            path = Path(self.settings.scratch, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        child.ask(request)
        answer = child.collect(self.source, to_the_end=code)
        if code or "status" not in answer:
            self.spare = None
            ended = child.end()
            if "status" not in answer:
                explained(answer, *ended, self.settings.limits)
        if code:
            self._empty()
        return answer

    def _renew(self) -> None:
        """Fork the next child, which is confined before it is needed."""
        if self.spare is not None:
            self.spare.end()
        self.spare = Child(self.settings, self.prepared)

    def _empty(self) -> None:
        for entry in os.scandir(self.settings.scratch):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)

    def _read(self) -> dict[str, Any] | None:
        if not (head := _exactly(self.source, LENGTH.size)):
            return None
        request: dict[str, Any] = pickle.loads(_exactly(self.source, *LENGTH.unpack(head)))
        return request

    def _write(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        view = memoryview(LENGTH.pack(len(body)) + body)
        while view:
            view = view[os.write(self.sink, view) :]


def _exactly(descriptor: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        if not (chunk := os.read(descriptor, length - len(data))):
            return b""
        data += chunk
    return bytes(data)


def main() -> None:
    """Serve the process that started this one."""
    source, sink = os.dup(0), os.dup(1)
    while min(source, sink) < 10:  # room for the child's descriptors below
        source, sink = os.dup(source), os.dup(sink)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what an import prints is no answer
    Server(_settings(**json.loads(sys.argv[1])), source, sink).serve()


def _settings(mechanism: str, limits: dict[str, Any], readable: list[str], scratch: str, files: bool) -> Settings:
    bounds = Limits(**limits) if files else replace(Limits(**limits), file_size=0)
    own = None
    if mechanism != "none":
        own = Confinement(bounds, readable, scratch if files else None, landlock=mechanism == "landlock")
    return Settings(bounds, scratch, files, own)
