"""The metric of `checkpoint.monitor`, whose direction holds for `best`, early stopping and sweeps alike."""

import math
from typing import Any

from omegaconf import DictConfig

from kd.components.signatures import suggestion
from kd.evaluation.items import requires_several
from kd.experiment.identity import load_skill
from kd.metrics.table import METRICS, Metric, of_skill
from kd.runs.folder import RunFolder
from kd.runs.metrics_log import logged_values

VALIDATION = "validation"


def monitored(cfg: DictConfig) -> Metric:
    """The metric `validation/<metric>`, or that of the run's skill, `<skill>/<metric>`.

    Raises:
        ValueError: the skill has another name, or no such metric, or validations do not log it.
    """
    name = cfg.checkpoint.monitor
    split, _, metric = name.partition("/")
    if split == VALIDATION:
        if metric not in METRICS:
            raise ValueError(
                f"checkpoint.monitor={name}: validations log no such metric; take {VALIDATION}/bits_per_byte"
            )
        return METRICS[metric]
    skill = load_skill(cfg.skill)
    known = {f"{skill.name}/{one.name}": one for one in (of_skill(skill.metric), *(m.metric for m in skill.metrics))}
    if any(requires_several(one) and name == f"{skill.name}/{one.metric.name}" for one in skill.metrics):
        raise ValueError(
            f"checkpoint.monitor={name} is computed from several answers to a prompt, and a validation generates one; "
            f"monitor another metric of the skill, as {next(iter(known))}"
        )
    if name not in known:
        raise ValueError(f"checkpoint.monitor={name} is no metric of the run's skill; {suggestion(name, known)}")
    return known[name]


def direction(cfg: DictConfig) -> str:
    """`minimize` or `maximize`, for a study over runs of this config."""
    checkpoint: Any = cfg.get("checkpoint")
    return "maximize" if checkpoint is not None and monitored(cfg).higher_is_better else "minimize"


def objective(cfg: DictConfig, folder: RunFolder) -> float | None:
    """The monitored value of a run that is done: of the weights that it evaluates, the last or the best; or None.

    A validation before the first step is of no weights that are kept.
    """
    values = [value for value in logged_values(folder.path, cfg.checkpoint.monitor, since=1) if math.isfinite(value)]
    if not values or cfg.checkpoint.use == "last":
        return values[-1] if values else None
    return max(values) if monitored(cfg).higher_is_better else min(values)
