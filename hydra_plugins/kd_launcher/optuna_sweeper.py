"""A study: Optuna proposes jobs, each by the objectives of those before."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.kd_launcher.sweeper import Check, CheckedSweeper

if TYPE_CHECKING:  # else lazy: every start imports this file, and optuna is an extra
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

    from kd.sweeps.jobs import Status

DIRECTION = "kd.experiment.monitor.direction"  # of a job's composed config: minimize or maximize
Proposal = tuple["Trial", list[str]]  # with the overrides of its job


class OptunaSweeper(CheckedSweeper):
    """Improves the jobs' value over intervals, ranges and choices, in `n_trials` jobs; fixed overrides stay.

    `n_jobs` of them at a time are proposed and launched. `sampler` names a class of optuna.samplers
    that is made of a seed. A job that fails, has an objective that is not finite, or that `check`
    refuses is a failed trial, and the study continues. A job with a run that is DONE keeps its
    objective. A study is of one arm: `arms`, which an experiment may set, is refused.
    """

    def __init__(
        self,
        check: str,
        n_trials: int,
        n_jobs: int = 1,
        sampler: str = "TPESampler",
        seed: int = 1,
        params: dict[str, str] | None = None,
        arms: Sequence[str] | None = None,
    ) -> None:
        super().__init__(check, n_jobs, params, arms)
        self.n_trials, self.n_jobs, self.sampler, self.seed = n_trials, n_jobs, sampler, seed
        self.given: dict[str, Override] = {}  # by key
        self.space: dict[str, BaseDistribution] = {}  # of those that are searched

    def sweep(self, arguments: list[str]) -> None:
        """Run the study and print its best job.

        Raises:
            SystemExit: optuna is missing, the grid has arms, there is nothing to search, or the first trial cannot run.
        """
        if not _imports("optuna"):
            sys.exit("hydra/sweeper=optuna needs the package optuna; install it with pip install -e '.[optuna]'")
        if self.arms:
            sys.exit(
                f"hydra/sweeper=optuna searches in one arm, and hydra.sweeper.arms has {len(self.arms)}; add "
                f"hydra.sweeper.arms=null and the overrides of one, as {shlex.join(self.arms[0])}"
            )
        self.given = self._parsed(arguments)
        self.space = {key: _space(line) for key, line in self.given.items() if line.is_sweep_override()}
        if not self.space:
            sys.exit("hydra/sweeper=optuna has nothing to search; give an interval, as optim.lr=interval(1e-4,1e-2)")
        study = self._study()
        OmegaConf.save(self.config, self._folder() / "multirun.yaml")
        batch = self._proposed(study)
        for num in range(self.checked, self.n_trials):
            self._write(num, self._overrides({}), "waiting")  # so that jobs are counted and the rest estimated
        while batch:
            self._run(study, batch)
            batch = self._proposed(study)
        self._print_best(study)

    def _study(self) -> "Study":
        if self.n_trials < 1 or self.n_jobs < 1:
            sys.exit(f"n_trials={self.n_trials}, n_jobs={self.n_jobs} of hydra.sweeper: both must be at least 1")
        import optuna

        sampler = getattr(optuna.samplers, self.sampler, None)
        if sampler is None:
            sys.exit(f"hydra.sweeper.sampler={self.sampler}: optuna.samplers has no such class; choose TPESampler")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(direction=self._direction(), sampler=sampler(seed=self.seed))

    def _direction(self) -> Any:
        """`minimize` or `maximize`: that of the metric that the jobs' value is of, in the first job of the space.

        Raises SystemExit where that job has no config or no such metric: a direction is never assumed.
        """
        overrides = self._overrides({key: _first(space) for key, space in self.space.items()})
        try:
            return self._composed(get_method(DIRECTION), 0, overrides)[0]
        except ValueError as error:
            sys.exit(f"{' '.join(overrides)}: {error}; no job was started")

    def _parsed(self, arguments: list[str]) -> dict[str, Override]:
        """The overrides by key; of two for one key the later, so that the command line overrides `params`."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        return {override.get_key_element(): override for override in overrides}

    def _overrides(self, values: Mapping[str, Any]) -> list[str]:
        """A job's overrides in the order of the command line; searched ones only where they have a value."""
        fixed = {key: line.input_line or "" for key, line in self.given.items() if key not in self.space}
        found = fixed | {key: f"{key}={value}" for key, value in values.items()}
        return [found[key] for key in self.given if key in found]

    def _proposed(self, study: "Study") -> list[Proposal]:
        """The next trials that can run, at most `n_jobs`; none at the end of the study."""
        check, batch = _with_direction(get_method(self.check), study.direction.name.lower()), list[Proposal]()
        while len(batch) < self.n_jobs and self.checked + len(batch) < self.n_trials:
            trial = study.ask(self.space)
            overrides = self._overrides(trial.params)
            try:
                self._composed(check, self.checked + len(batch), overrides)
                batch.append((trial, overrides))
            except ValueError as error:
                self._refuse(study, trial, overrides, str(error))
        return batch

    def _refuse(self, study: "Study", trial: "Trial", overrides: list[str], reason: str) -> None:
        from optuna.trial import TrialState

        job = f"job {self.checked} ({' '.join(overrides)})"
        if trial.number == 0:  # most likely so with all of them
            sys.exit(f"{job}: {reason}; no job was started")
        print(f"{job} cannot run: {reason}", file=sys.stderr, flush=True)
        self._write(self.checked, overrides, "failed", reason)
        self.checked += 1
        study.tell(trial, state=TrialState.FAIL)

    def _run(self, study: "Study", batch: list[Proposal]) -> None:
        from optuna.trial import TrialState

        assert self.launcher is not None
        for num, (_, overrides) in enumerate(batch, start=self.checked):
            self._write(num, overrides, "waiting")
        returns = self.launcher.launch([overrides for _, overrides in batch], initial_job_idx=self.checked)
        self.checked += len(batch)
        for (trial, _), ended in zip(batch, returns, strict=True):
            value = _objective(ended)
            study.tell(trial, value, TrialState.FAIL if value is None else TrialState.COMPLETE)

    def _print_best(self, study: "Study") -> None:
        from kd.sweeps.jobs import read_jobs

        jobs = [job for job in read_jobs(self._folder()).values() if _finite(job.objective) is not None]
        if jobs:
            choose = max if study.direction.name == "MAXIMIZE" else min
            best = choose(jobs, key=lambda job: job.objective or 0.0)
            found = [line for line in best.overrides if line.partition("=")[0] in self.space]
            print(f"Best: job {best.num} ({' '.join(found)}) with {best.objective:.6g}", flush=True)

    def _write(self, num: int, overrides: list[str], status: "Status", reason: str | None = None) -> None:
        from kd.sweeps.jobs import Job

        Job(overrides, self._folder(), num, status, reason=reason).write()

    def _folder(self) -> Path:
        assert self.config is not None
        return Path(self.config.hydra.sweep.dir).absolute()


def _with_direction(check: Check, direction: str) -> Check:
    """`check`, which also refuses a job with a metric of another direction than the study's."""

    def checked(config: DictConfig) -> Any:
        found, own = check(config), get_method(DIRECTION)(config)
        if own != direction:
            raise ValueError(
                f"a study has one direction, {direction}, and the metric of this job has the other; search only where "
                "checkpoint.monitor is one metric"
            )
        return found

    return checked


def _first(space: "BaseDistribution") -> Any:
    """The first choice, or the low end."""
    from optuna.distributions import CategoricalDistribution

    known: Any = space
    return known.choices[0] if isinstance(space, CategoricalDistribution) else known.low


def _objective(ended: JobReturn) -> float | None:
    return _finite(ended.return_value) if ended.status == JobStatus.COMPLETED else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def _space(override: Override) -> "BaseDistribution":
    try:
        return distribution(override)
    except ValueError as error:
        sys.exit(f"{override.input_line}: {error}")


def distribution(override: Override) -> "BaseDistribution":
    """The Optuna distribution of a sweep override; `tag(log,interval(a,b))` is logarithmic.

    Raises:
        ValueError: an empty range, ends in the wrong order, a logarithm of what is not positive.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept: Any = override.value()
    ends: tuple[Any, Any]
    scale: dict[str, Any]
    if isinstance(swept, IntervalSweep):
        ends, scale = (swept.start, swept.end), {"log": "log" in swept.tags}
    elif isinstance(swept, RangeSweep):
        values = sorted(swept.range())
        if not values:
            raise ValueError("the range is empty; its end is not part of it")
        ends, scale = (values[0], values[-1]), {"step": abs(swept.step)}
    else:
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    whole = all(isinstance(end, int) for end in ends)
    return IntDistribution(*ends, **scale) if whole else FloatDistribution(*ends, **scale)
