"""A job's process on the node that a cluster gives it. Needs nothing but Python there, so that it is sent by value."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

GRACE = 30.0  # seconds in which a process that is stopped saves what it has
INTERVAL = 0.1  # seconds between looks
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "GLOBAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
OF_SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


@dataclass
class NodeProcess:
    """A command that is run where the object is called; the call returns its exit code, negative for a signal.

    Attributes:
        command: the line, with the path of the interpreter.
        folder: in which it is run.
        variables: of the environment, set beside the node's own.
        log: the file that its output is appended to.
        alone: whether it starts its ranks itself; else it is one of the ranks, which the cluster has started.
    """

    command: list[str]
    folder: str
    variables: dict[str, str]
    log: str
    alone: bool = True
    child: "subprocess.Popen[bytes] | None" = field(default=None, repr=False, compare=False)

    def __call__(self) -> int:
        """Run it. Whatever interrupts the call, as a KeyboardInterrupt, ends the process, which saves before."""
        ranks = {*RANK_VARIABLES, *OF_SLURM} if self.alone else set()
        environment = {name: value for name, value in os.environ.items() if name not in ranks} | self.variables
        with open(self.log, "ab") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": self.folder}
            self.child = subprocess.Popen(self.command, env=environment, start_new_session=True, **options)
            try:
                while self.child.poll() is None:  # not wait(), which some interruptions do not end
                    time.sleep(INTERVAL)
            except BaseException:
                self.stop()
                raise
        return self.child.returncode

    def ask(self) -> None:
        """Send SIGTERM to the process and its ranks, at which a run saves and ends."""
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it: by SIGTERM, and what is left of it after GRACE by SIGKILL."""
        if self.child is None:
            return
        self.ask()
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "child": None}


def called(process: NodeProcess) -> int:
    """The exit code of a process that is run here."""
    return process()
