"""A process that has imported what jobs import and is forked for each, so that a job need not import it again.

The server itself runs no operation of torch and initialises no GPU, and has one thread of Python: a lock that another
thread holds at the moment of the fork stays locked in the child for ever (experiments/LOG.md), and neither OpenMP's
threads nor a GPU's context survive it. A job is a session of its own with the environment, command line, standard
streams and exit of a process that was started afresh.

The file is run by its path, so that it is the launcher's `sys.path` on which it finds modules, and imports nothing of
the project before.
"""

import gc
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class ForkServer:
    """Starts programs as forks of one process, one after another.

    Args:
        modules: what it imports first; those that are not there are left out.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.answers = self.channel.makefile("r")
        command = [sys.executable, __file__, str(theirs.fileno()), json.dumps(sys.path), *modules]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **options)
        theirs.close()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> "Forked | None":
        """Fork for a command line of Python's; None where the server cannot, and the caller has to start it."""
        request = json.dumps({"command": list(command), "environment": dict(environment)})
        with suppress(OSError, ValueError):
            self.channel.sendall(f"{request}\n".encode())
            return Forked(json.loads(self.answers.readline())["pid"], self)
        return None

    def close(self) -> None:
        """Let the server end; it does, too, when this process ends."""
        self.answers.close()
        self.channel.close()


@dataclass(frozen=True)
class Forked:
    """A program that the server runs; its `pid` is that of its process group, too."""

    pid: int
    server: ForkServer

    def wait(self) -> int:
        """Its exit code, negative for a signal; as for SIGTERM where the server was killed, and so the program, too."""
        with suppress(OSError, ValueError):
            return int(json.loads(self.server.answers.readline())["code"])
        while _is_there(self.pid):  # it saves
            time.sleep(0.1)
        return -15


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- the server ------------------------------------------------------------------------------------------------------


def preload(modules: Sequence[str]) -> None:
    """Import modules, of which some may be missing.

    Raises:
        SystemExit: the process can no longer be forked safely.
    """
    for name in modules:
        with suppress(ImportError):  # an extra; a job that needs it states the reason
            import_module(name)
    torch = sys.modules.get("torch")
    if threading.active_count() > 1 or (torch is not None and torch.cuda.is_initialized()):
        sys.exit(1)  # each job is then started with an interpreter of its own
    gc.collect()
    gc.freeze()  # pages that no collection writes to are shared with all jobs


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the fork, and None in the server once the launcher has gone."""
    with channel.makefile("r") as requests:
        for line in requests:
            pid = os.fork()
            if pid == 0:
                return json.loads(line)
            if (code := _exit_code(pid, channel)) is None:
                break
            channel.sendall(f"{json.dumps({'code': code})}\n".encode())
    return None


def _exit_code(pid: int, channel: socket.socket) -> int | None:
    """The exit code of a child, negative for a signal; None as soon as the launcher has gone."""
    ended = os.pidfd_open(pid)
    watched: list[Any] = [ended, channel]
    try:
        readable, _, _ = select.select(watched, [], [])
    finally:
        os.close(ended)
    if ended not in readable:
        return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become(request: Mapping[str, Any], channel: socket.socket) -> None:
    """Run the program of a request in this process, as its interpreter would."""
    os.setsid()
    channel.sendall(f"{json.dumps({'pid': os.getpid()})}\n".encode())  # a signal finds the group from here on
    channel.close()
    os.environ.clear()
    os.environ.update(request["environment"])
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator does so by itself
    _, *words = sys.orig_argv[:] = request["command"]
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    launcher = socket.socket(fileno=int(sys.argv[1]))
    sys.path[:] = json.loads(sys.argv[2])
    preload(sys.argv[3:])
    if (job := serve(launcher)) is not None:
        become(job, launcher)
