"""Limits of a sandboxed process, and its outcome when it has ended."""

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "raised", "exit", "timeout", "disk", "killed"]
AT_LIMIT = frozenset({"timeout", "disk", "killed"})  # statuses with which nothing was found out about the text


@dataclass(frozen=True)
class Limits:
    """Bounds of one sandboxed process. It cannot create processes, so there is no bound on their number.

    Args:
        cpu_seconds: processor time, in whole seconds as the kernel counts it; the bound that an endless loop reaches.
        seconds: time by the clock, for code that waits without computing; generous, because machines are busy.
        memory: address space in bytes, the interpreter and imported packages included.
        file_size: bytes of one file.
        disk: bytes of the scratch folder.
        output: bytes of standard output, and as many of standard error, that are kept; the rest is dropped. Also
            the most bytes of a called function's value; a longer one is an error.
    """

    cpu_seconds: int = 2
    seconds: float = 20.0
    memory: int = 1 << 30
    file_size: int = 8 << 20
    disk: int = 32 << 20
    output: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """The outcome of a sandboxed process.

    Args:
        stdout: standard output, cut to `Limits.output` bytes; bytes that are not UTF-8 are replaced.
        stderr: standard error, likewise.
        status: "ok" (it ran to its end), "raised" (an exception), "exit" (it called exit), "timeout", "disk"
            (its scratch folder was full), or "killed" (a signal; also where memory ends outside of Python).
        seconds: time by the clock.
        error: one line about any status but "ok", else "".
        value: the value that a called function returned, as json represents it; None for `run`.
    """

    stdout: str
    stderr: str
    status: Status
    seconds: float
    error: str = ""
    value: Any = None


class NoVerdict(Exception):
    """A verifier returned no value for a text: it raised, exited, or reached a limit. `status` is the Outcome's."""

    def __init__(self, status: str, error: str):
        super().__init__(error)
        self.status = status


class SandboxError(Exception):
    """A sandboxed call could not be made at all, for a reason other than the text."""
