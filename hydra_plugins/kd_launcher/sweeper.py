"""Hydra's own sweeper, which checks every job before the first one starts, with any launcher."""

import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict, read_write


class CheckedSweeper(BasicSweeper):
    """The grid of comma-separated values; `check` names a function of a job's composed config.

    `check` raises ValueError for a job that cannot run. It may return the job's RunFolder: if that is DONE,
    the job is recorded as skipped before anything is launched.
    """

    def __init__(self, check: str, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size, params)
        self.check = check
        self.checked = 0  # jobs of earlier batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose and check all jobs, then record them as waiting.

        Raises:
            SystemExit: names the first job that cannot run, its overrides and the reason.
        """
        check = get_method(self.check)
        found = [self._checked(check, self.checked + i, overrides) for i, overrides in enumerate(batch)]
        for i, (overrides, folder) in enumerate(zip(batch, found, strict=True)):
            self._record(self.checked + i, list(overrides), folder)
        self.checked += len(batch)

    def _checked(self, check: Callable[[DictConfig], Any], num: int, overrides: Sequence[str]) -> Any:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = num
        outer = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # as for a job, so that ${hydra:...} resolves
        try:
            return check(_without_hydra(config))
        except ValueError as error:
            sys.exit(f"job {num} ({' '.join(overrides)}): {error}; no job was started")
        finally:
            HydraConfig.instance().cfg = outer

    def _record(self, num: int, overrides: list[str], folder: Any) -> None:
        from kd.jobs import Job  # lazy: importing a plugin must be fast
        from kd.run_folder import RunFolder

        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir).absolute()
        if isinstance(folder, RunFolder) and folder.done:
            Job(overrides, sweep, num, "skipped", os.path.relpath(folder.path, sweep)).write()
        else:
            Job(overrides, sweep, num, "waiting").write()


def _without_hydra(config: DictConfig) -> DictConfig:
    task_config = deepcopy(config)
    with read_write(task_config), open_dict(task_config):
        del task_config["hydra"]
    return task_config
