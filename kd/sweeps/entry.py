"""The beginning and the end of a sweep, whichever launcher and sweeper Hydra uses."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import hydra
import hydra._internal.hydra
import hydra._internal.utils
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from kd.components.launchers import use_own_launchers
from kd.errors import in_one_sentence
from kd.orphans import own
from kd.program import again, is_rank_zero
from kd.progress import remark
from kd.reports.grid import console
from kd.sweeps.jobs import SWEEP, Job, Task, read_jobs, record
from kd.sweeps.loader import SweepLoader

hydra._internal.utils.run_and_report = lambda func: func()  # it would print errors in four lines
hydra._internal.hydra.ConfigLoaderImpl = SweepLoader  # type: ignore[misc]  # what Hydra makes its loader of

__all__ = ["Job", "SweepReport", "main", "record"]


class SweepReport(Callback):
    """Hydra callback: makes the sweep folder, and ends with the table on the terminal and in files."""

    sweep: ClassVar[Path | None] = None  # of this process, between its start and its conclusion
    paper: ClassVar[str | None] = None  # its table ends with the paper's published numbers
    page: ClassVar[tuple[bool, bool]] = True, False  # run.page and run.open, of the sweep as a whole

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take a new sweep folder.

        Raises:
            SystemExit: the folder exists, or this process is a rank that would sweep a second time.
        """
        if not is_rank_zero():
            sys.exit(
                "a second rank was started inside a sweep and would run all of it again; "
                "use hydra/launcher=process (a process per job) or trainer.strategy=ddp_fork"
            )
        sweep = Path(config.hydra.sweep.dir).absolute()
        try:
            (sweep / "jobs").mkdir(parents=True)
        except FileExistsError:
            sys.exit(f"sweep folder {sweep} exists already; leave hydra.sweep.dir to its default or name a new one")
        SweepReport.sweep, SweepReport.paper = sweep, config.get("paper")
        SweepReport.page = bool(OmegaConf.select(config, "run.page")), bool(OmegaConf.select(config, "run.open"))
        own()
        signal.signal(signal.SIGTERM, _stop)  # else only the launcher's process would end, without a table

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Frees the job's two configs, which Hydra would keep until the sweep ends, and unused memory."""
        job_return.cfg = job_return.hydra_cfg = None
        if allocation := sys.modules.get("kd.kernels.allocation"):
            allocation.give_freed_memory_back()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Conclude; exit code 1 if a job failed."""
        if not SweepReport.conclude(settle=True):
            sys.exit(1)

    @classmethod
    def conclude(cls, settle: bool) -> bool:
        """Print the table and write sweep.csv and sweep.md, once. True unless a job is not finished.

        Jobs whose record still has the status running are dead: nothing runs after a sweep's end. With `settle` they
        failed, else they were interrupted.
        """
        sweep, cls.sweep = cls.sweep, None
        jobs = read_jobs(sweep) if sweep else {}
        if sweep is None or not jobs:
            return True
        for job in jobs.values():
            if job.status == "running" and settle:
                job.end("failed", "its process ended without a report")
            elif job.status == "running":
                job.end("interrupted")
        from kd.reports.sweep import near, sweep_table, write_sweep  # pandas and scipy, which jobs do without

        write_sweep(sweep, cls.paper)
        terminal = console()
        terminal.print(sweep_table(sweep, terminal.width, cls.paper))
        remark(f"Written to {near(sweep)}/sweep.md and sweep.csv")
        written, opened = cls.page
        if written:
            from kd.reports.page.document import end_with_page

            end_with_page(sweep, paper=cls.paper, open_it=opened)
        return all(job.status in ("done", "skipped") for job in jobs.values())


def main(config_path: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    """`hydra.main` for a recorded task `(config, job) -> float | None`.

    Whatever ends a sweep, its table is printed. Exit codes: 0; 1 if the run or a job failed; 128 + signal
    if a signal ended it (130 for Ctrl-C), with the command that goes on.
    """

    def decorate(task: Task) -> Callable[[], None]:
        use_own_launchers()
        entry = hydra.main(version_base="1.3", config_path=config_path, config_name=config_name)(record(task))

        @functools.wraps(task)
        def enter() -> None:
            code: int | str | None = 0
            try:
                with in_one_sentence():
                    entry()
            except KeyboardInterrupt:
                code = 130
            except SystemExit as stop:
                code = stop.code
            stopped = isinstance(code, int) and code >= 128
            finished = SweepReport.conclude(settle=not stopped)
            if stopped and is_rank_zero() and SWEEP not in os.environ:
                print(f"Stopped. Finished runs are kept; to go on:\n  {resume_command()}", flush=True)
            sys.exit(code or (0 if finished else 1))

        return enter

    return decorate


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal to a sweep while no launcher does: its jobs' processes are ended by the exception raised."""
    signal.signal(number, signal.SIG_IGN)  # once
    raise SystemExit(128 + number)


def resume_command() -> str:
    """The command line of this process, which skips runs that are DONE and resumes the others."""
    return again(without="run.force=")
