"""Tasks as jobs: a job's record in the sweep, its isolation, and its end.

Each job writes its own record `<sweep>/jobs/<num>.json`, so that every Hydra launcher (a process per job,
one process for all, joblib, submitit) leaves the same trace, and the end of a sweep only reads.
"""

import functools
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd.artifacts import write_atomically
from kd.errors import in_one_sentence, sentence
from kd.orphans import end_with_parent, owns
from kd.program import is_rank_zero
from kd.progress import duration, part, remark
from kd.reports.grid import console
from kd.reports.render import print_grid
from kd.reports.robustness import robustness_grid
from kd.reports.table import run_grid
from kd.runs.composed import sections
from kd.runs.folder import RunFolder
from kd.runs.job_record import Status as RecordedStatus
from kd.runs.job_record import read_record
from kd.secrets import masked, masked_output, note
from kd.versions import code_digest

SWEEP, NUM = "KD_SWEEP", "KD_SWEEP_JOB"  # set by a launcher for a child process: its sweep folder and job number
Status = RecordedStatus | Literal["unreadable"]
Task = Callable[[DictConfig, "Job"], float | None]
Work = Callable[[RunFolder], Mapping[str, Any]]


@dataclass
class Job:
    """One call of the task: a job of a sweep, or (`sweep` None) a single run."""

    overrides: list[str]
    sweep: Path | None = None
    num: int | None = None
    status: Status = "running"
    run_folder: str | None = None  # relative to the sweep folder, so that outputs can be moved
    reason: str | None = None
    seconds: float | None = None
    objective: float | None = None
    omits: list[str] | None = None  # of a skipped job: what its own method lacks, whichever run wrote the results
    started: float = field(default_factory=time.time)  # unix seconds

    @classmethod
    def current(cls) -> "Job":
        """The job of this process, as given by Hydra or by our launcher in the parent process."""
        config = HydraConfig.get()
        overrides: list[str] = OmegaConf.to_container(config.overrides.task, resolve=False)  # type: ignore[assignment]
        if SWEEP in os.environ:
            return cls(overrides, Path(os.environ[SWEEP]), int(os.environ[NUM]))
        if config.mode == RunMode.MULTIRUN:
            return cls(overrides, Path(config.sweep.dir).absolute(), int(config.job.num))
        return cls(overrides)

    def write(self) -> None:
        """Write the record atomically; nothing for a single run or on another rank."""
        if self.sweep is not None and is_rank_zero():
            record = {key: value for key, value in asdict(self).items() if key != "sweep"}
            path = self.sweep / "jobs" / f"{self.num}.json"
            write_atomically(path, json.dumps(record, indent=2) + "\n")

    def end(self, status: Status, reason: str | None = None) -> None:
        """Writes the status with which, and the seconds after which, the job ended."""
        self.status, self.reason, self.seconds = status, reason, time.time() - self.started
        self.write()

    def run(
        self,
        folder: RunFolder,
        work: Work,
        *,
        config_yaml: str,
        omits: Sequence[str] = (),
        force: bool = False,
        wait: bool = False,
        role: str | None = None,
    ) -> Mapping[str, Any]:
        """The results in `folder` when it is DONE, else those of `work(folder)`; their table is printed.

        role: the words for a run that another one needs, as its baseline, which head its table.

        The folder is locked meanwhile. With `force` an old one is set aside first; with `wait` another
        process that works in it is waited for (a run that several jobs need). `omits`, which is no part of a folder's
        name, is this job's own also where the results are another's. A rank other than zero only works.

        Raises:
            BlockingIOError: another process works in the folder, and `wait` is False.
            ValueError: `work` returned what does not fit the schema of results.json, or the folder is DONE and its
                results cannot be read.
        """
        if not is_rank_zero():
            return folder.results() if folder.done and not force else work(folder)
        self.run_folder = os.path.relpath(folder.path, self.sweep or Path.cwd())
        self.write()
        with folder.lock(wait=wait):
            if force:
                folder.set_aside()
            results = self._stored(folder, omits) if folder.done else self._worked(folder, work, config_yaml)
        whose = folder.path.name if role is None else f"{role} ({folder.path.name})"
        grid = run_grid(results, f"Held-out scores of {whose}", sections(config_yaml))
        print_grid(grid, console())
        if (variants := robustness_grid(results)) is not None:
            print_grid(variants, console())
        return results

    def _stored(self, folder: RunFolder, omits: Sequence[str]) -> Mapping[str, Any]:
        try:
            results = folder.results()
        except ValueError as error:
            aside = f"{folder.path}.old-{folder.old_runs + 1}"
            raise ValueError(
                f"{folder.path} is DONE, but its results cannot be read: {error}; "
                f"to run it again, move it aside: mv {shlex.quote(str(folder.path))} {shlex.quote(aside)}"
            ) from None
        remark(f"{folder.path.name} is DONE: skipped; run.force=true runs it again")
        if results.get("code") not in (None, code_digest()):
            remark(
                f"caution: the code of kd changed since {folder.path.name} ran, without another VERSION: a change that "
                "gives other numbers needs one, or run.force=true"
            )
        self.status, self.omits = "skipped", list(omits)
        return {**results, "omits": self.omits}

    def _worked(self, folder: RunFolder, work: Work, config_yaml: str) -> Mapping[str, Any]:
        folder.start(config_yaml, self.overrides)
        try:
            return folder.finish(work(folder))
        except Exception as error:
            folder.fail(sentence(error), masked(traceback.format_exc()))
            raise


def read_jobs(sweep: Path) -> dict[int, Job]:
    """The records of a sweep by job number; a record that cannot be read is of an unreadable job, with the reason."""
    paths = [path for path in (sweep / "jobs").glob("*.json") if path.stem.isdecimal()]
    return {int(path.stem): _read_job(path, sweep) for path in sorted(paths, key=lambda path: int(path.stem))}


def _read_job(path: Path, sweep: Path) -> Job:
    try:
        return Job(**read_record(path), sweep=sweep)
    except ValueError as error:
        return Job([], sweep, int(path.stem), "unreadable", reason=str(error))


def announce(sweep: Path, num: int, overrides: Sequence[str]) -> None:
    """Prints the number of the job, of how many where that is known, how it differs, and the time left to the sweep."""
    jobs, now = read_jobs(sweep), time.time()
    count = f" ({num + 1} of {len(jobs)})" if num in jobs else ""
    jobs[num] = Job(list(overrides), sweep, num, started=now)
    others = [set(job.overrides) for job in jobs.values() if job.overrides]
    own = [word for word in overrides if len(others) == 1 or any(word not in words for words in others)]
    left = time_left(jobs.values(), now)
    eta = "after the first job" if left is None else duration(left)
    remark(f"── job {num}{count}: {' '.join(own) or 'as the others'} · sweep ETA {eta}")


def time_left(jobs: Iterable[Job], now: float) -> float | None:
    """The seconds until the last job ends; None as long as none has run.

    Each takes as long as those that are done took in the mean. Jobs that are running side by side share what is left.

    now: unix seconds.
    """
    by_status: dict[str, list[Job]] = {}
    for job in jobs:
        by_status.setdefault(job.status, []).append(job)
    ran = [job.seconds for job in by_status.get("done") or by_status.get("failed", []) if job.seconds is not None]
    if not ran:
        return None
    each = sum(ran) / len(ran)
    running = [max(0.0, each - (now - job.started)) for job in by_status.get("running", [])]
    shared = (sum(running) + each * len(by_status.get("waiting", []))) / max(1, len(running))
    return max(shared, *running) if running else shared


def record(task: Task) -> Callable[[DictConfig], float | None]:
    """Make `task(config, job)` a Hydra task function.

    In a sweep an exception is recorded and swallowed, so that the other jobs go on. A single run ends in one sentence
    and exit code 1 (`kd.errors`; HYDRA_FULL_ERROR=1 keeps the traceback).
    """

    @functools.wraps(task)
    def recorded(config: DictConfig) -> float | None:
        note(config)
        job = Job.current()
        end_with_parent()
        alone = job.sweep is None or not is_rank_zero()
        return run_alone(task, config, job) if alone else run_in_sweep(task, config, job)

    return recorded


def run_alone(task: Task, config: DictConfig, job: Job) -> float | None:
    """Runs a single run; any exception ends in one sentence."""
    with in_one_sentence(str(OmegaConf.select(config, "run.root") or "")):
        return call(task, config, job)


def run_in_sweep(task: Task, config: DictConfig, job: Job) -> float | None:
    """Runs a job of a sweep and records its end. Raises only exceptions that must end the process."""
    assert job.sweep is not None
    assert job.num is not None
    in_child = SWEEP in os.environ
    if not in_child:
        announce(job.sweep, job.num, job.overrides)
    job.write()
    beside = not (in_child or owns())  # a worker of a launcher that runs several at a time
    try:
        with part(f"job {job.num}", beside=True) if beside else nullcontext():
            job.objective = call(task, config, job)
        job.end("skipped" if job.status == "skipped" else "done")
    except KeyboardInterrupt:
        job.end("interrupted")
        raise
    except SystemExit as stop:
        if _stopped(stop):
            job.end("interrupted")
            raise
        _failed(job, stop)
    except Exception as error:
        _failed(job, error)
    if in_child and job.status == "failed":
        sys.exit(1)
    return job.objective


def call(task: Task, config: DictConfig, job: Job) -> float | None:
    """The task, isolated. Lightning makes exit code 1 of a Ctrl-C, which stays a KeyboardInterrupt here."""
    with isolated(), masked_output():
        try:
            return task(config, job)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from stop
            raise


def _stopped(stop: SystemExit) -> bool:
    """Return whether a signal was the cause; Lightning exits with 0 on a SIGTERM without a handler."""
    return stop.code in (None, 0) or (isinstance(stop.code, int) and stop.code >= 128)


def _failed(job: Job, error: BaseException) -> None:
    assert job.sweep is not None
    job.end("failed", sentence(error))
    log = job.sweep / "jobs" / f"{job.num}.traceback.txt"
    write_atomically(log, masked(traceback.format_exc()))
    remark(f"job {job.num} failed: {job.reason} (traceback in {log})", sys.stderr)


@contextmanager
def isolated() -> Iterator[None]:
    """Restore, for the next job of this process, the environment and torch's settings; close the job's W&B run."""
    environment = dict(os.environ)
    torch = sys.modules.get("torch")
    dtype = torch.get_default_dtype() if torch else None
    deterministic = torch is not None and torch.are_deterministic_algorithms_enabled()
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            with suppress(Exception):  # a run is not lost by a logger
                wandb.finish(exit_code=exit_code)  # else the next job logs into this one's run
        if torch := sys.modules.get("torch"):
            torch.set_default_dtype(dtype or torch.float32)
            if torch.are_deterministic_algorithms_enabled() != deterministic:
                torch.use_deterministic_algorithms(deterministic)  # imports torch's compiler: a second
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
