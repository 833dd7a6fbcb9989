"""The forked process: it is confined, reads one request, and ends."""

import json
import os
import pickle
import signal
import socket
import sys
import traceback
from types import ModuleType
from typing import Any, NamedTuple

from kd.sandbox.confinement import Confinement, libc, limit
from kd.sandbox.limits import Limits

FIRST = 3  # descriptors from here on: request, result
LONGEST_ERROR = 300  # characters


class Settings(NamedTuple):
    """Settings that the children of one worker have in common."""

    limits: Limits
    scratch: str  # the worker's own folder
    files: bool  # whether they may use it
    confinement: Confinement | None  # None where the user accepts that there is none


def serve(descriptors: tuple[int, int, int, int, int], settings: Settings, prepared: dict[bytes, Any]) -> None:
    """Confine this process, carry out the request that arrives, write the answer, end. Never returns.

    descriptors: standard input, output and error, request, result.
    """
    try:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # a worker that is killed takes its child along
        _place(descriptors, None if settings.confinement is None else settings.confinement.ruleset)
        os.chdir(settings.scratch if settings.files else "/")
        if settings.confinement is None:
            limit(settings.limits)
        else:
            settings.confinement.apply()
        with os.fdopen(FIRST, "rb") as stream:
            request = pickle.load(stream)
        answer = json.dumps(_answer(request, settings.scratch, prepared))
    except BaseException as error:
        answer = json.dumps({"status": "raised", "error": described(error)})
    try:
        os.write(FIRST + 1, answer.encode() + b"\n")
    finally:
        os._exit(0)


def _place(descriptors: tuple[int, ...], kept: int | None) -> None:
    """The child's descriptors in their places, and every other one closed but `kept`; the worker's lie above them."""
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
    first = len(descriptors)
    if kept is not None:
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, 1 << 16)


def _answer(request: dict[str, Any], scratch: str, prepared: dict[bytes, Any]) -> dict[str, Any]:
    if request["kind"] == "check":
        return {"status": "ok", "value": escapes(request["folder"])}
    if request["kind"] == "call":
        return {"status": "ok", "value": prepared[request["target"]](*pickle.loads(request["arguments"]))}
    return _run(request["code"], scratch)


def _run(code: str, scratch: str) -> dict[str, Any]:
    """Run `code` as a main program whose folder is the scratch folder."""
    module = ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, ["<code>"]
    sys.path.insert(0, scratch)
    try:
        exec(compile(code, "<code>", "exec"), module.__dict__)
        answer = {"status": "ok"}
    except SystemExit as error:
        answer = {"status": "exit", "error": f"it called exit({error.code!r})"[:LONGEST_ERROR]}
    except BaseException as error:
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        answer = {"status": "raised", "error": described(error)}
    sys.stdout.flush()
    sys.stderr.flush()
    return answer


def described(error: BaseException) -> str:
    """One line: the exception's type and the beginning of its message."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its __str__ is the text's own
        text = type(error).__name__
    return " ".join(text.split())[:LONGEST_ERROR]


def escapes(folder: str) -> list[str]:
    """The forbidden actions that this process can still perform, `folder` being outside; empty if it is confined."""
    attempts = {
        f"list {folder}": lambda: os.listdir(folder),
        f"write to {folder}": lambda: open(f"{folder}/kd-sandbox-{os.getpid()}", "x").close(),
        "open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "send a signal to its parent": lambda: os.kill(os.getppid(), 0),
        "start a process": lambda: os.fork() or os._exit(0),
    }
    return [name for name, attempt in attempts.items() if _succeeds(attempt)]


def _succeeds(attempt: Any) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
