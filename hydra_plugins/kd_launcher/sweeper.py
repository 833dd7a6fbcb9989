"""Hydra's own sweeper, which checks every job before the first one starts, with any launcher."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write

Check = Callable[[DictConfig], Any]


class CheckedSweeper(BasicSweeper):
    """The grid of comma-separated values; `check` names a function of a job's composed config.

    `check` raises ValueError for a job that cannot run. It may return the job's RunFolder: if that is DONE,
    the job is recorded as skipped before anything is launched.

    `arms` are overrides that belong together, as `objective=ab rollout=mixed`: each is combined with the whole grid,
    which so need not be a product of axes.
    """

    def __init__(
        self,
        check: str,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        arms: Sequence[str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.check = check
        self.arms = [shlex.split(arm) for arm in arms or ()]
        self.checked = 0  # jobs of earlier batches

    def split_arguments(  # type: ignore[override]  # of a class, where it is static
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs in batches. Raises SystemExit for an interval, and for a key that is in the arms, too."""
        own = {word.partition("=")[0] for arm in self.arms for word in arm}
        for override in overrides:
            if override.is_interval_sweep():
                sys.exit(f"{override.input_line}: a grid has no intervals; list values, or add hydra/sweeper=optuna")
            if override.key_or_group in own:
                arms = ",".join(f'"{shlex.join(arm)}"' for arm in self.arms)
                sys.exit(
                    f"{override.input_line}: the arms of this grid set {override.key_or_group}; choose among them, as "
                    f"in 'hydra.sweeper.arms=[{arms}]'"
                )
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        if self.arms:
            jobs = [[*arm, *job] for arm in self.arms for job in jobs]
        return [list(chunk) for chunk in self.split_overrides_to_chunks(jobs, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose and check all jobs, then record them as waiting.

        Raises:
            SystemExit: names the first job that cannot run, its overrides and the reason.
        """
        check = get_method(self.check)
        found = [self._checked(check, self.checked + i, overrides) for i, overrides in enumerate(batch)]
        skipped = 0
        for i, (overrides, (folder, omits)) in enumerate(zip(batch, found, strict=True)):
            skipped += self._record(self.checked + i, list(overrides), folder, omits)
        self.checked += len(batch)
        if skipped:
            print(f"{skipped} of {len(batch)} jobs are DONE: skipped; run.force=true runs them again", flush=True)

    def _checked(self, check: Check, num: int, overrides: Sequence[str]) -> tuple[Any, list[str]]:
        try:
            return self._composed(check, num, overrides)
        except ValueError as error:
            sys.exit(f"job {num} ({' '.join(overrides)}): {error}; no job was started")

    def _composed(self, check: Check, num: int, overrides: Sequence[str]) -> tuple[Any, list[str]]:
        """The result of `check` on the job's config, and its `omits`. Raises ValueError if it cannot run."""
        assert self.hydra_context is not None
        assert self.config is not None
        try:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        except HydraException as error:
            from kd.sweeps.loader import unfit  # lazy: importing a plugin must be fast

            raise ValueError(unfit(error)) from None
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = num
        outer = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # as for a job, so that ${hydra:...} resolves
        try:
            task_config = without_hydra(config)
            return check(task_config), list(task_config.get("omits") or ())
        finally:
            HydraConfig.instance().cfg = outer

    def _record(self, num: int, overrides: list[str], folder: Any, omits: list[str]) -> bool:
        """Write the job's record. Returns whether it is skipped."""
        from kd.runs.folder import RunFolder
        from kd.sweeps.jobs import Job  # lazy: importing a plugin must be fast

        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir).absolute()
        if isinstance(folder, RunFolder) and folder.done and folder.readable:  # else the job fails with the reason
            Job(overrides, sweep, num, "skipped", os.path.relpath(folder.path, sweep), omits=omits).write()
            return True
        Job(overrides, sweep, num, "waiting").write()
        return False


def without_hydra(config: DictConfig) -> DictConfig:
    """The config that a job's task gets."""
    task_config = deepcopy(config)
    with read_write(task_config), open_dict(task_config):
        del task_config["hydra"]
    return task_config
