"""Jobs on other machines: what several of them need is made once, before all; each is the program that runs it alone.

Records and results are files, and so are the models that are prepared once: run.root, KD_CACHE, the interpreter and the
folder in which the sweep was started are at the same paths on all machines (docs/scale.md).
"""

import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.kd_launcher.job_process import (
    command_of,
    concluded,
    environment_of,
    returned,
    skipped,
    sweep_folder,
)
from hydra_plugins.kd_launcher.node_process import GRACE, NodeProcess
from hydra_plugins.kd_launcher.sweeper import without_hydra

INTERVAL = 0.2  # seconds between looks at the jobs
SHARED = 30.0  # seconds until a file that another machine wrote is surely seen
FIRST = "prerequisites"  # the folder in the sweep's with the records of the jobs that make them
ONLY = "run.prerequisites_only=true"
Item = TypeVar("Item")


@dataclass
class ClusterJob:
    """A job of the sweep, or one that makes the prerequisites of such a job.

    Attributes:
        num: its number in the sweep.
        cfg: its composed config.
        sweep: the folder of its record.
        first: whether it makes prerequisites, and trains nothing.
        started: when it was submitted; unix seconds.
        handle: the cluster's, once it was submitted.
    """

    num: int
    overrides: list[str]
    cfg: DictConfig
    sweep: Path
    first: bool = False
    started: float = 0.0
    handle: Any = None

    @property
    def nodes(self) -> int:
        """The machines that it takes."""
        return 1 if self.first else int(OmegaConf.select(self.cfg, "trainer.num_nodes") or 1)

    @property
    def devices(self) -> int:
        """The GPUs that it takes on each machine, or processes on the CPU; one where trainer.devices=auto."""
        found: Any = None if self.first else OmegaConf.select(self.cfg, "trainer.devices")
        if OmegaConf.is_list(found):
            return len(found)
        return max(1, int(found)) if str(found).isdecimal() else 1

    @property
    def gpus(self) -> int:
        """The GPUs among its devices."""
        return self.devices if OmegaConf.select(self.cfg, "trainer.accelerator") in ("gpu", "cuda") else 0

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.sweep / "jobs" / f"{self.num}.log"


class ClusterLauncher(Launcher):
    """Submits the jobs of a sweep that are not DONE, and waits for them, in whichever order they end.

    One that fails, or whose machine is lost, stops no other.

    Args:
        prerequisites: whether prepared models, baselines, elicited records and earlier rounds that jobs need are made
            first, each once, by jobs of their own; else a job makes what it misses, and others wait for it.
        at_once: jobs that are submitted at a time at most; None: all of them.
        variables: patterns of the names of this process's variables that jobs get beside those of their node.
    """

    def __init__(self, prerequisites: bool = True, at_once: int | None = None, variables: Sequence[str] = ("KD_*",)):
        self.prerequisites, self.at_once, self.variables = prerequisites, at_once, list(variables)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's config. Raises SystemExit where `check` does."""
        self.hydra_context, self.config = hydra_context, config
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raises SystemExit, in one sentence with the remedy, where nothing could be submitted."""

    @abstractmethod
    def submit(self, jobs: Sequence[ClusterJob], processes: Sequence[NodeProcess]) -> None:
        """Have each process called on a node of the cluster, and set the job's handle."""

    @abstractmethod
    def has_ended(self, job: ClusterJob) -> bool:
        """Return whether a job that was submitted has ended, in whichever way."""

    @abstractmethod
    def reason(self, job: ClusterJob) -> str | None:
        """How a job failed that has ended, where the cluster ended it; None where its process ended by itself."""

    @abstractmethod
    def cancel(self, job: ClusterJob) -> None:
        """Stop a job, so that it saves, or take it back if it still waits."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; failures are in their records and never raised.

        Raises:
            KeyboardInterrupt, SystemExit: a signal came; the jobs have saved and ended, or been taken back.
        """
        from kd.sweeps.jobs import read_jobs  # lazy: importing a plugin must be fast

        sweep = sweep_folder(self.config)
        numbered = list(enumerate((list(filter_overrides(one)) for one in job_overrides), start=initial_job_idx))
        jobs = [ClusterJob(num, words, self._composed(num, words), sweep) for num, words in numbered]
        jobs = [job for job in jobs if skipped(sweep, job.num) is None]
        for wave in waves(jobs, self._needs) if self.prerequisites else ():
            self._run([replace(job, sweep=sweep / FIRST, first=True) for job in wave])
        self._run(jobs)
        records = read_jobs(sweep)
        return [returned(records[num], words, self.config) for num, words in numbered]

    def _composed(self, num: int, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = num
        return config

    def _needs(self, job: ClusterJob) -> set[Path]:
        """The folders that are to be made before a job trains; none where it cannot run, and fails with the reason."""
        from kd.experiment.launch import needs

        outer = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(job.cfg)  # as for a job, so that ${hydra:...} resolves
        try:
            return needs(without_hydra(job.cfg))
        except (ValueError, OSError):
            return set()
        finally:
            HydraConfig.instance().cfg = outer

    def _run(self, jobs: Sequence[ClusterJob]) -> None:
        """Submit jobs and wait until all have ended; an exception here ends those that run."""
        left, running = list(jobs), list[ClusterJob]()
        try:
            while left or running:
                free = len(left) if self.at_once is None else self.at_once - len(running)
                if left and free > 0:
                    batch, left = left[:free], left[free:]
                    self.submit(batch, [self._process(job) for job in batch])
                    running += batch
                for job in [one for one in running if self.has_ended(one)]:
                    running.remove(job)
                    self._conclude(job)
                time.sleep(INTERVAL)
        except BaseException:
            self._stop(running)
            raise

    def _process(self, job: ClusterJob) -> NodeProcess:
        """The process of a job that is about to be submitted, which is announced."""
        from kd.progress import remark
        from kd.sweeps.jobs import announce

        if job.first:
            remark(f"── prerequisites of job {job.num} and of others that need the same: {' '.join(job.overrides)}")
        else:
            announce(job.sweep, job.num, job.overrides)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.started = time.time()
        words = [*job.overrides, ONLY] if job.first else job.overrides
        everything = environment_of(job.sweep, job.num)
        names = [name for name in everything if any(fnmatchcase(name, pattern) for pattern in self.variables)]
        given = {name: everything[name] for name in names}
        return NodeProcess(command_of(self.config, words), os.getcwd(), given, str(job.log), alone=job.nodes == 1)

    def _conclude(self, job: ClusterJob) -> None:
        from kd.progress import remark
        from kd.sweeps.jobs import read_jobs

        reason, deadline = self.reason(job), time.monotonic() + SHARED
        while reason is None and time.monotonic() < deadline:
            if (found := read_jobs(job.sweep).get(job.num)) is not None and found.status not in ("waiting", "running"):
                break
            time.sleep(INTERVAL)
        unseen = f"its process left no record in {job.sweep}, which has to be a folder that all machines share"
        why = f"{reason or unseen} (its output is in {job.log})"
        ended = concluded(job.sweep, job.num, job.overrides, job.started, why, stopped=False)
        name = f"prerequisites of job {job.num}" if job.first else f"job {job.num}"
        if ended.status == "failed":
            remark(f"{name} failed: {ended.reason}", sys.stderr)
        else:
            remark(f"{name}: {ended.status}")

    def _stop(self, jobs: Sequence[ClusterJob]) -> None:
        """Cancel jobs and wait until they have saved, at most GRACE seconds."""
        for job in jobs:
            self.cancel(job)
        deadline = time.monotonic() + GRACE
        with suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait
            while time.monotonic() < deadline and not all(self.has_ended(job) for job in jobs):
                time.sleep(INTERVAL)


def waves(jobs: Sequence[Item], needs: Callable[[Item], set[Path]]) -> Iterator[list[Item]]:
    """Jobs whose needs are to be made, so that each is made once: in a wave no two need the same.

    needs: the folders that a job needs and that are not made yet, looked at before each wave, since some are made and
        others named meanwhile. Each is tried once: a failure is left to the jobs that need it.
    """
    tried = set[Path]()
    while True:
        wave, making, left = list[Item](), set[Path](), list[Item]()
        for job in jobs:
            if own := needs(job) - tried:
                left.append(job)
                if not own & making:
                    making |= own
                    wave.append(job)
        if not wave:
            return
        yield wave
        tried |= making
        jobs = left
