"""A fresh process per job: nothing leaks from job to job, and DDP ranks join their own job only."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.kd_launcher.fork_server import Forked, ForkServer
from hydra_plugins.kd_launcher.job_process import (
    command_of,
    concluded,
    environment_of,
    how_it_ended,
    returned,
    skipped,
    sweep_folder,
)

if TYPE_CHECKING:
    from kd.sweeps.jobs import Job

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class ProcessLauncher(Launcher):
    """Runs jobs one after the other, each as the same program in `hydra.mode=RUN`.

    A signal is forwarded to the running job, whose end is awaited so that it can save a checkpoint; a second
    one kills it.

    Args:
        preload: modules that a process imports once, to be forked for each job where there are several
            (`hydra_plugins.kd_launcher.fork_server`); none: each job starts an interpreter and imports them itself.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self.preload = list(preload)
        self.server: ForkServer | None = None
        self.expected = 0  # jobs to run, of this launch and earlier ones
        self.child: subprocess.Popen[bytes] | Forked | None = None
        self.signals: list[int] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's config."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; failures are in their records and never raised.

        Raises:
            KeyboardInterrupt: SIGINT came, after the running job ended.
            SystemExit: another signal came, after the running job ended.
        """
        returns, nums = [], range(initial_job_idx, initial_job_idx + len(job_overrides))
        self.expected += sum(skipped(sweep_folder(self.config), num) is None for num in nums)
        with self._forwarding():
            for num, overrides in enumerate(job_overrides, start=initial_job_idx):
                if self.signals:
                    break
                returns.append(self._job(num, list(filter_overrides(overrides))))
        if signal.SIGINT in self.signals:
            raise KeyboardInterrupt
        if self.signals:
            sys.exit(128 + self.signals[0])
        return returns

    def _job(self, num: int, overrides: list[str]) -> JobReturn:
        from kd.sweeps.jobs import announce  # lazy: importing a plugin must be fast

        sweep = sweep_folder(self.config)
        job = skipped(sweep, num)
        if job is None:
            announce(sweep, num, overrides)
            job = self._run(sweep, num, overrides)
        return returned(job, overrides, self.config)

    def _run(self, sweep: Path, num: int, overrides: list[str]) -> "Job":
        started = time.time()
        code = self._wait_for(command_of(self.config, overrides), environment_of(sweep, num))
        return concluded(sweep, num, overrides, started, how_it_ended(code), stopped=bool(self.signals))

    def _wait_for(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the child; return its exit code, negative for a signal. Its output goes to ours as it comes.

        A session of its own: Ctrl-C reaches the job once, through us, and with it all of its ranks.
        No input: nothing in a sweep may wait for an answer.
        """
        before = len(self.signals)
        child = self._start(command, environment)
        self.child = child
        if len(self.signals) > before:  # it came while the child was being started
            self._send(self.signals[-1])
        code = child.wait()
        if code < 0:
            self._send(signal.SIGKILL)  # ranks that Lightning started survive a killed job
        self.child = None
        return code

    def _start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
        """A fork of the process that has imported what jobs need; an interpreter for a single job, or if it cannot."""
        if self.preload and self.expected > 1 and sys.platform == "linux":
            self.server = self.server or ForkServer(self.preload)
            if (child := self.server.start(command, environment)) is not None:
                return child
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def _send(self, number: int) -> None:
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        def forward(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            self._send(number if len(self.signals) == 1 else signal.SIGKILL)

        old = {n: signal.getsignal(n) for n in SIGNALS}
        mine = [n for n in SIGNALS if old[n] is not signal.SIG_IGN]  # nohup stays nohup
        for number in mine:
            signal.signal(number, forward)
        try:
            yield
        finally:
            for number in mine:
                signal.signal(number, old[number])
