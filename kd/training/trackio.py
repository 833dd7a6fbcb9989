"""Trackio as a logger of Lightning's: a dashboard on this machine, without an account."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class Trackio(Logger):
    """Logs to the sqlite file of a project in TRACKIO_DIR. A resumed run continues under its name.

    Args:
        project: the project's name.
        run_name: the run's name; the run gives its folder's where the config does not.
        group: by which its dashboard groups runs.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, project: str = "kd", run_name: str | None = None, group: str | None = None):
        super().__init__()
        import trackio

        self.trackio = trackio
        self.project, self.run_name, self.group = project, run_name, group
        self.config: Mapping[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self.run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of trackio, which is begun when it is first needed, and again after `finalize`."""
        if self._run is None:
            self._run = self.trackio.init(
                project=self.project,
                name=self.run_name,
                group=self.group,
                config=dict(self.config),
                resume="allow",
                embed=False,  # which is for notebooks,
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the config for the beginning of the run."""
        self.config = vars(params) if isinstance(params, Namespace) else params

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, so that all is written; what is logged later continues it."""
        if self._run is not None:
            self._run.finish()
            self._run = None
