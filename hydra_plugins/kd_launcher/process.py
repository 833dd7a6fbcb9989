"""A fresh process per job: nothing leaks from job to job, and DDP ranks join their own job only."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from kd.sweeps.jobs import Job

RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "GLOBAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](mode|sweep|sweeper|launcher)\b")  # not passed to the child
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class ProcessLauncher(Launcher):
    """Runs jobs one after the other, each as the same program in `hydra.mode=RUN`.

    A signal is forwarded to the running job, whose end is awaited so that it can save a checkpoint; a second
    one kills it.
    """

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
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
        returns = []
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
        from kd.sweeps.jobs import announce, read_jobs  # lazy: importing a plugin must be fast

        sweep = Path(self.config.hydra.sweep.dir).absolute()
        job = read_jobs(sweep).get(num)
        if job is None or job.status != "skipped":
            announce(sweep, num, overrides)
            job = self._run(sweep, num, overrides)
        result = JobReturn(overrides=overrides, task_name=self.config.hydra.job.name)
        result.status, result.return_value = JobStatus.COMPLETED, job.objective
        return result

    def _run(self, sweep: Path, num: int, overrides: list[str]) -> "Job":
        from kd.sweeps.jobs import NUM, SWEEP, Job, read_jobs

        started = time.time()
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        environment |= {SWEEP: str(sweep), NUM: str(num)}
        code = self._wait_for(self._command(overrides), environment)
        job = read_jobs(sweep).get(num)
        if job is None or job.status == "waiting":  # it ended before it recorded its start
            job = Job(overrides, sweep, num, started=started)
        if self.signals and job.status in ("running", "failed"):
            job.end("interrupted")
        elif job.status == "running":
            job.end("failed", _how_it_ended(code))
        return job

    def _command(self, overrides: list[str]) -> list[str]:
        """This program's command line with one job's overrides. The child finds its configs where the parent did."""
        from kd.program import started_by  # lazy: importing a plugin must be fast

        hydra = self.config.hydra
        places = {source.provider: _place(source) for source in hydra.runtime.config_sources}
        flags = ["--config-name", hydra.job.config_name, "--config-path", places["main"]]
        if "command-line" in places:
            flags += ["--config-dir", places["command-line"]]
        kept = [item for item in hydra.overrides.hydra if not OF_THE_SWEEP.match(item)]
        return [sys.executable, *started_by(), *flags, *overrides, *kept, "hydra.mode=RUN"]

    def _wait_for(self, command: list[str], environment: dict[str, str]) -> int:
        """Run the child; return its exit code, negative for a signal. Its output goes to ours as it comes.

        A session of its own: Ctrl-C reaches the job once, through us, and with it all of its ranks.
        No input: nothing in a sweep may wait for an answer.
        """
        before = len(self.signals)
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        self.child = child
        if len(self.signals) > before:  # it came while the child was being started
            self._send(self.signals[-1])
        code = child.wait()
        if code < 0:
            self._send(signal.SIGKILL)  # ranks that Lightning started survive a killed job
        self.child = None
        return code

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


def _place(source: DictConfig) -> str:
    return f"pkg://{source.path}" if source.schema == "pkg" else source.path


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} and no report"
