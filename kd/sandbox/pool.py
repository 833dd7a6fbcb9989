"""Workers that are started before they are needed, and the requests that they carry out."""

import atexit
import json
import os
import pickle
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

from kd.sandbox.limits import Limits, NoVerdict, Outcome, SandboxError
from kd.sandbox.mechanisms import ORDER, REMEDY, SCRATCH, VARIABLE, Mechanism, command, missing, package_folders
from kd.sandbox.worker import LENGTH

Item = TypeVar("Item")
Value = TypeVar("Value")

VERDICT = Limits()
CODE = Limits(cpu_seconds=5, seconds=30.0)
WORKERS = min(2, os.cpu_count() or 1)  # while one forks its next child, the other serves a request
PATIENCE = 120.0  # seconds for a worker to start, to import, and to respond beyond its own limit


class Broken(Exception):
    """A worker did not start, or ended."""


class Worker:
    """One worker process, seen from its parent."""

    def __init__(self, mechanism: Mechanism, limits: Limits, packages: tuple[str, ...], *, files: bool):
        self.limits, self.checked = limits, mechanism == "none"
        self.scratch = SCRATCH if mechanism == "bubblewrap" else tempfile.mkdtemp(prefix="kd-sandbox-")
        arguments, environment = command(mechanism, limits, packages, self.scratch, files=files)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker is
        self.process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent
        )

    def check(self) -> None:
        """Check, once, that the confinement holds in this worker.

        Raises:
            Broken: it does not start, or a forbidden action succeeds.
        """
        if self.checked:
            return
        with tempfile.TemporaryDirectory(prefix="kd-sandbox-outside-") as folder:
            answer = self._send({"kind": "check", "folder": folder})
        if answer["status"] != "ok":
            raise Broken(answer["error"])
        if answer["value"]:
            raise Broken(f"it can still {', '.join(answer['value'])}")
        self.checked = True

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises Broken where the worker ends or is not confined."""
        self.check()
        return self._send(request)

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        body = pickle.dumps(dict(request))
        try:
            self._write(LENGTH.pack(len(body)) + body)
            deadline = time.monotonic() + self.limits.seconds + PATIENCE
            (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
            answer: dict[str, Any] = json.loads(self._read(length, deadline))
        except OSError as error:
            raise Broken(self._last_line() or str(error)) from None
        return answer

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def _read(self, length: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        data = bytearray()
        while len(data) < length:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            chunk = self.process.stdout.read(length - len(data)) if ready else b""
            if not chunk:
                raise OSError("it ended" if ready else "it did not answer")
            data += chunk
        return bytes(data)

    def _last_line(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Ends the worker and its children."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        if self.scratch != SCRATCH:
            shutil.rmtree(self.scratch, ignore_errors=True)


class Pool:
    """A few workers of one kind, used in turn; one that has died is replaced. Threads may share the pool."""

    def __init__(self, mechanism: Mechanism, limits: Limits, packages: tuple[str, ...], *, files: bool):
        self.kind = (mechanism, limits, packages)
        self.files = files
        self.idle: deque[Worker] = deque(self._worker() for _ in range(WORKERS))
        self.all = set(self.idle)
        self.free = threading.Semaphore(WORKERS)

    def _worker(self) -> Worker:
        return Worker(*self.kind, files=self.files)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of a worker; a request whose worker died is sent to another once.

        Raises:
            Broken: no worker can answer.
        """
        with self.free:
            worker = self.idle.popleft()
            try:
                try:
                    return worker.ask(request)
                except Broken:
                    worker = self._replaced(worker)
                    return worker.ask(request)
            finally:
                self.idle.append(worker)

    def _replaced(self, worker: Worker) -> Worker:
        self.all.discard(worker)
        worker.close()
        new = self._worker()
        self.all.add(new)
        return new

    def close(self) -> None:
        """End the workers."""
        for worker in self.all:
            worker.close()

    def abandon(self) -> None:
        """Close a forked copy's ends of the pipes, which belong to the original process."""
        for worker in self.all:
            for stream in (worker.process.stdin, worker.process.stdout, worker.log):
                if stream is not None:
                    stream.close()
            worker.process.returncode = 0  # it is no child of the copy


_pools: dict[Any, Pool] = {}
_lock = threading.Lock()
_calls = 0
_of_thread = threading.local()


def _close() -> None:
    for pool in _pools.values():
        pool.close()
    _pools.clear()


def _forget() -> None:
    global _lock
    for pool in _pools.values():
        pool.abandon()
    _pools.clear()
    _lock = threading.Lock()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)


def mechanism() -> Mechanism:
    """The mechanism that confines here: "bubblewrap", "landlock", or, where KD_SANDBOX accepts it, "none".

    Found by trying, once for each process and value of KD_SANDBOX.

    Raises:
        ValueError: neither works, and KD_SANDBOX does not accept that; the sentence has the reasons and the remedy.
    """
    return _found(os.environ.get(VARIABLE))


@cache
def _found(wanted: str | None) -> Mechanism:
    if wanted == "none":
        return "none"
    if wanted not in (None, *ORDER):
        raise ValueError(f"{VARIABLE}={wanted} is no sandbox; take {', '.join(ORDER)} or none, or leave it unset")
    reasons = []
    for name in ORDER if wanted is None else (wanted,):
        if (reason := _trouble(name)) is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"a model's text cannot be evaluated in a sandbox here ({'; '.join(reasons)}); {REMEDY}")


def _trouble(name: Mechanism) -> str | None:
    """The reason why it does not work on this machine, None where it does."""
    if (reason := missing(name)) is not None:
        return reason
    worker = Worker(name, VERDICT, (), files=False)
    try:
        worker.check()
        return None
    except Broken as error:
        return str(error)
    finally:
        worker.close()


def calls() -> int:
    """The number of requests of this process to a sandbox; a run that raises it has used one."""
    return _calls


def _calls_of_thread() -> int:
    return int(vars(_of_thread).get("calls", 0))


def concurrently(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """`[function(item) for item in items]`, several at a time from the first item on that used a sandbox.

    A call that waits for a worker then leaves the others to work. A function that uses no sandbox is called in this
    thread alone, one item after another.

    Raises:
        Exception: what the function raises for the first item, in their order, for which it does; later items may have
            been computed in vain.
    """
    found: list[Value] = []
    for i, item in enumerate(items):
        before = _calls_of_thread()
        found.append(function(item))
        if _calls_of_thread() > before and i + 2 < len(items):
            with ThreadPoolExecutor(WORKERS + 1) as threads:  # one more: its request is there when a worker is free
                return found + list(threads.map(function, items[i + 1 :]))
    return found


def _send(request: Mapping[str, Any], limits: Limits, packages: tuple[str, ...], *, files: bool) -> dict[str, Any]:
    global _calls
    key = (mechanism(), limits, packages, files)
    with _lock:
        _calls += 1
        _of_thread.calls = _calls_of_thread() + 1
        if key not in _pools:
            _pools[key] = Pool(key[0], limits, packages, files=files)
        pool = _pools[key]
    try:
        return pool.ask(request)
    except Broken as error:
        answer = {"status": "killed", "error": f"the sandbox's worker ended twice ({error})", "seconds": 0.0}
        return {"stdout": "", "stderr": "", **answer}


def run(code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits = CODE) -> Outcome:
    """Run Python source as a main program in a fresh sandboxed process whose folder is empty but for `files`.

    stdin: its standard input. files: text by relative path.

    Raises:
        ValueError: no sandbox works here, or a path leaves the folder.
    """
    for name in files or {}:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"files: {name!r} is not a path inside the sandbox's folder; give a relative one")
    request = {"kind": "run", "code": code, "stdin": stdin, "files": dict(files or {})}
    answer = _send(request, limits, (), files=True)
    names = ("stdout", "stderr", "status", "seconds")
    return Outcome(**{name: answer[name] for name in names}, error=answer.get("error", ""))


def verdict(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    setup: tuple[Any, ...] | None = None,
    limits: Limits = VERDICT,
) -> Any:
    """The value of `function(*args)` in a fresh sandboxed process; with `setup`, that of `function(*setup)(*args)`.

    function: one of a module's top level; the module is imported in the worker, so it should import little.
    args: anything that pickles. setup: trusted; `function(*setup)` is called once, outside of the sandbox's limits.
    The value has to be serializable as json (numbers, text, lists). A text that is evaluated in the same process as its
    verifier can make it return anything; the sandbox protects the machine, not the value.

    Raises:
        NoVerdict: it raised, exited, or reached a limit.
        SandboxError: the function cannot be imported or set up.
        ValueError: no sandbox works here.
    """
    module = function.__module__
    if module == "__main__" or "<locals>" in function.__qualname__:
        raise SandboxError(
            f"{module}.{function.__qualname__} cannot be imported; give a function that a module defines"
        )
    target = pickle.dumps((module, function.__qualname__, setup))
    request = {"kind": "call", "target": target, "arguments": pickle.dumps(args)}
    answer = _send(request, limits, tuple(package_folders(module)), files=False)
    if answer["status"] == "broken":
        raise SandboxError(f"{module}.{function.__qualname__} cannot be set up in the sandbox: {answer['error']}")
    if answer["status"] != "ok":
        raise NoVerdict(answer["status"], answer["error"])
    return answer["value"]
