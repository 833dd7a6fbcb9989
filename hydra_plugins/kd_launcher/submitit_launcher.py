"""Each job is a job of a Slurm cluster or a process of this machine, submitted by submitit (extra `submitit`)."""

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf

from hydra_plugins.kd_launcher.cluster import ClusterJob, ClusterLauncher
from hydra_plugins.kd_launcher.job_process import how_it_ended, sweep_folder
from hydra_plugins.kd_launcher.node_process import NodeProcess

COMMON = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class SubmititLauncher(ClusterLauncher):
    """Jobs that take the same resources are one array. A job that is preempted or out of time is submitted again.

    Args:
        cluster: slurm or local.
        cpus_per_device: cores for each device (GPU, or process on the CPU) of a job.
        mem_gb_per_device: main memory likewise, in GB; None: what the cluster gives.
        signal_delay_s: seconds before the end of its time at which a job saves.
        max_num_timeout: times that a job which is out of time is submitted again.
        resources: submitit's names for what follows from the job's trainer where it is None (nodes, tasks_per_node,
            gpus_per_node, cpus_per_task, mem_gb), timeout_min, and all of Slurm's (partition, account, setup, ...).
    """

    def __init__(
        self,
        cluster: str,
        *,
        prerequisites: bool = True,
        at_once: int | None = None,
        cpus_per_device: int = 1,
        mem_gb_per_device: int | None = None,
        signal_delay_s: int = 120,
        max_num_timeout: int = 0,
        **resources: Any,
    ) -> None:
        super().__init__(prerequisites, at_once)
        self.cluster, self.signal_delay_s, self.max_num_timeout = cluster, signal_delay_s, max_num_timeout
        self.cpus_per_device, self.mem_gb_per_device = cpus_per_device, mem_gb_per_device
        plain: dict[str, Any] = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in resources.items()
        }
        self.resources = {name: value for name, value in plain.items() if value not in (None, [], {})}

    def check(self) -> None:
        """Raises SystemExit where submitit is not installed, or Slurm is not on this machine."""
        name = f"hydra/launcher=submitit_{self.cluster}"
        if find_spec("submitit") is None:
            sys.exit(f"{name} needs the package submitit; install it with pip install -e '.[submitit]'")
        if self.cluster == "slurm" and (missing := [word for word in ("sbatch", "srun") if shutil.which(word) is None]):
            sys.exit(
                f"{name}: {missing[0]} is not on this machine; start the sweep on a login node of the cluster, or take "
                "hydra/launcher=submitit_local"
            )

    def parameters(self, job: ClusterJob) -> dict[str, Any]:
        """What a job takes, by submitit's names: what was given, and what follows from the job's trainer."""
        nodes = self.resources.get("nodes", job.nodes)
        tasks = self.resources.get("tasks_per_node", job.devices if nodes > 1 else 1)
        follows = {
            **{"nodes": nodes, "tasks_per_node": tasks, "gpus_per_node": job.gpus},
            "cpus_per_task": max(1, self.cpus_per_device * job.devices // tasks),
            "mem_gb": None if self.mem_gb_per_device is None else self.mem_gb_per_device * job.devices,
        }
        given = {"name": f"kd-{sweep_folder(self.config).name}", **follows, **self.resources}
        if job.first:
            given |= {"nodes": 1, "tasks_per_node": 1}
        return {name: value for name, value in given.items() if value is not None}

    def submit(self, jobs: Sequence[ClusterJob], processes: Sequence[NodeProcess]) -> None:
        """One array for all jobs that take the same."""
        from submitit import AutoExecutor

        logging.getLogger("submitit").setLevel(logging.ERROR)
        arrays: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            arrays.setdefault(repr(self.parameters(job)), []).append(index)
        for indices in arrays.values():
            again = {f"{self.cluster}_max_num_timeout": self.max_num_timeout}
            executor = AutoExecutor(sweep_folder(self.config) / ".submitit" / "%j", cluster=self.cluster, **again)
            executor.update_parameters(**self._named(self.parameters(jobs[indices[0]])))
            patience = self.signal_delay_s if self.cluster == "slurm" else 0
            calls = [SubmittedProcess(**vars(processes[index]), patience=patience) for index in indices]
            with _ctrl_c_ignored():  # by processes of this machine, which `cancel` ends
                handles = executor.submit_array(calls)
            for index, handle in zip(indices, handles, strict=True):
                jobs[index].handle = handle

    def _named(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters under the names of submitit's executors: those that all have, and the cluster's own."""
        own = parameters | ({"signal_delay_s": self.signal_delay_s} if self.cluster == "slurm" else {})
        return {name if name in COMMON else f"{self.cluster}_{name}": value for name, value in own.items()}

    def has_ended(self, job: ClusterJob) -> bool:
        """Whether its result is there, or the cluster does not know it as one that waits or runs."""
        return job.handle.done()

    def reason(self, job: ClusterJob) -> str | None:
        """The exit code or signal of its process, or where there is none, the cluster's word for its end."""
        try:
            codes = job.handle.results()
        except Exception as error:
            lines = str(error).strip().splitlines()
            return (
                f"the cluster ended it as {job.handle.state} ({lines[-1].strip() if lines else type(error).__name__})"
            )
        return next((how_it_ended(code) for code in codes if code), None)

    def cancel(self, job: ClusterJob) -> None:
        """scancel, or SIGTERM to the process of this machine, which sends it on."""
        if self.cluster == "slurm":
            job.handle.cancel(check=False)
            return
        with suppress(ProcessLookupError):
            os.kill(int(job.handle.job_id), signal.SIGTERM)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class SubmittedProcess(NodeProcess):
    """Saves, and is submitted again, at the signal that submitit takes for a preemption or the end of its time.

    Attributes:
        patience: seconds for which a process that SIGTERM has ended waits for that signal, which comes later.
        stopping: whether SIGTERM came.
    """

    patience: float = 120.0
    stopping: bool = False

    def __call__(self) -> int:
        """Run it."""
        signal.signal(signal.SIGTERM, self._forward)  # submitit would ignore it
        code = super().__call__()
        if self.stopping and code in STOPPED:
            time.sleep(self.patience)
        return code

    def _forward(self, number: int, frame: Any) -> None:
        self.stopping = True
        self.ask()

    def checkpoint(self) -> Any:
        """The same again, once the process has saved; called by submitit."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(SubmittedProcess(**{**vars(self), "child": None, "stopping": False}))
