"""Each job is a task of a Ray cluster (extra `ray`), by Ray's public API."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hydra_plugins.kd_launcher.cluster import ClusterJob, ClusterLauncher
from hydra_plugins.kd_launcher.job_process import how_it_ended
from hydra_plugins.kd_launcher.node_process import NodeProcess, called
from kd.ray_cluster import check_installed, connected


class RayLauncher(ClusterLauncher):
    """Jobs wait until the cluster has the cores and GPUs that they take, and run side by side as far as it has them.

    Args:
        address: of a cluster, `auto` for the one of this machine; None: one is started here, for the sweep.
        num_cpus: cores that a job takes; None: one for each device.
        num_gpus: GPUs that a job takes; None: trainer.devices on GPUs, else none.
        resources: of the cluster's own that a job takes, as {a100: 1}.
        retries: times that a job whose machine was lost is started again; it resumes from its checkpoint.
        variables: as of `ClusterLauncher`; those that the config refers to are added.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        resources: DictConfig | None = None,
        retries: int = 0,
        variables: Sequence[str] = ("KD_*",),
        prerequisites: bool = True,
        at_once: int | None = None,
    ) -> None:
        super().__init__(prerequisites, at_once, variables)
        self.address, self.num_cpus, self.num_gpus, self.retries = address, num_cpus, num_gpus, retries
        self.resources: Any = {} if resources is None else OmegaConf.to_container(resources)
        self.ray: Any = None

    def check(self) -> None:
        """Raises SystemExit where Ray is not installed."""
        try:
            check_installed("hydra/launcher=ray")
        except ValueError as error:
            sys.exit(str(error))
        self.variables += re.findall(r"oc\.env:\s*['\"]?(\w+)", OmegaConf.to_yaml(self.config, resolve=False))

    def takes(self, job: ClusterJob) -> dict[str, Any]:
        """What a job takes, by Ray's names. Raises SystemExit for a job on several machines."""
        if job.nodes > 1:
            sys.exit(
                f"job {job.num}: trainer.num_nodes={job.nodes}, and hydra/launcher=ray starts a job on one machine; "
                "take hydra/launcher=submitit_slurm"
            )
        cpus = job.devices if self.num_cpus is None else self.num_cpus
        gpus = job.gpus if self.num_gpus is None else self.num_gpus
        return {"num_cpus": cpus, "num_gpus": gpus, "resources": self.resources or None}

    def submit(self, jobs: Sequence[ClusterJob], processes: Sequence[NodeProcess]) -> None:
        """A task for each. Raises SystemExit for what a cluster of this machine alone can never give."""
        self.ray = self.ray or self._connected()
        there = self.ray.cluster_resources()
        for job, process in zip(jobs, processes, strict=True):
            takes = self.takes(job)
            for what, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
                if self.address is None and takes[what] > there.get(name, 0):
                    sys.exit(
                        f"job {job.num} takes {takes[what]:g} {name}s, and this machine has {there.get(name, 0):g}; "
                        f"set hydra.launcher.{what}, or give hydra.launcher.address"
                    )
            task = self.ray.remote(max_retries=self.retries, **takes)(called)
            job.handle = task.options(name=f"job {job.num}").remote(process)

    def _connected(self) -> Any:
        """The library, once it is connected. Raises SystemExit where there is no cluster at the address."""
        try:
            ray = connected(self.address, "hydra.launcher.address")
        except ValueError as error:
            sys.exit(str(error))
        ray.cloudpickle.register_pickle_by_value(sys.modules[NodeProcess.__module__])
        return ray

    def has_ended(self, job: ClusterJob) -> bool:
        """Whether the task has a result, be it an error."""
        return bool(self.ray.wait([job.handle], timeout=0)[0])

    def reason(self, job: ClusterJob) -> str | None:
        """The exit code or signal of its process, or Ray's error, as for a machine that was lost."""
        try:
            code = self.ray.get(job.handle)
        except self.ray.exceptions.RayError as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            return f"Ray ended it: {type(error).__name__}{f' ({lines[-1].strip()})' if lines else ''}"
        return how_it_ended(code) if code else None

    def cancel(self, job: ClusterJob) -> None:
        """Interrupt the task, which ends its process."""
        self.ray.cancel(job.handle)
