"""A job as a process: the command line that runs it alone, its environment, and its record once it has ended."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from hydra_plugins.kd_launcher.node_process import RANK_VARIABLES

if TYPE_CHECKING:
    from kd.sweeps.jobs import Job

OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](mode|sweep|sweeper|launcher)\b")  # not passed to the child


def command_of(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """This program's command line with one job's overrides. The child finds its configs where the parent did.

    config: that of the sweep, with its section `hydra`.
    """
    from kd.program import started_by  # lazy: importing a plugin must be fast

    hydra = config.hydra
    places = {source.provider: _place(source) for source in hydra.runtime.config_sources}
    flags = ["--config-name", hydra.job.config_name, "--config-path", places["main"]]
    if "command-line" in places:
        flags += ["--config-dir", places["command-line"]]
    kept = [item for item in hydra.overrides.hydra if not OF_THE_SWEEP.match(item)]
    return [sys.executable, *started_by(), *flags, *overrides, *kept, "hydra.mode=RUN"]


def environment_of(sweep: Path, num: int) -> dict[str, str]:
    """The environment of this process without a rank's variables, and with the job that the child is."""
    from kd.sweeps.jobs import NUM, SWEEP

    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return environment | {SWEEP: str(sweep), NUM: str(num)}


def sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, absolute."""
    return Path(config.hydra.sweep.dir).absolute()


def skipped(sweep: Path, num: int) -> "Job | None":
    """The record of a job whose run is DONE; None for one that is to run."""
    from kd.sweeps.jobs import read_jobs

    job = read_jobs(sweep).get(num)
    return job if job is not None and job.status == "skipped" else None


def concluded(sweep: Path, num: int, overrides: Sequence[str], started: float, reason: str, stopped: bool) -> "Job":
    """The record of a job whose process has ended: its own, or where it did not write its end, that of a failure.

    Args:
        started: when the process was started; unix seconds.
        reason: how the process ended, for the case that the job did not record it.
        stopped: whether the sweep was stopped meanwhile; the job is then interrupted, not failed.
    """
    from kd.sweeps.jobs import Job, read_jobs

    job = read_jobs(sweep).get(num)
    if job is None or job.status == "waiting":  # it ended before it recorded its start
        job = Job(list(overrides), sweep, num, started=started)
    if stopped and job.status in ("running", "failed"):
        job.end("interrupted")
    elif job.status == "running":
        job.end("failed", reason)
    return job


def returned(job: "Job", overrides: Sequence[str], config: DictConfig) -> JobReturn:
    """The job as Hydra, and a sweeper that searches, read it: failures are in the records, and never raised."""
    result = JobReturn(overrides=overrides, task_name=config.hydra.job.name)
    result.status, result.return_value = JobStatus.COMPLETED, job.objective
    return result


def how_it_ended(code: int) -> str:
    """The end of a process without a record, by its exit code, which is negative for a signal."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} and no report"


def _place(source: DictConfig) -> str:
    return f"pkg://{source.path}" if source.schema == "pkg" else source.path
