"""A composed config's name, hash and folder, and its baseline: determined once, read by all stages."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from kd.components.axes import references_alone
from kd.components.instantiation import instantiate
from kd.composition.check import check as check_config
from kd.composition.machine import check_machine, check_parts
from kd.composition.targets import asks_teacher, same_rows
from kd.evaluation.measurable import check_measurable
from kd.experiment.compatibility import check_models
from kd.experiment.identity import alike, identity, load_skill, skill_node
from kd.experiment.judges import check_judges
from kd.experiment.monitor import monitored
from kd.experiment.preparation import choice, variant
from kd.experiment.rounds import of_round, round_before
from kd.runs.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """A run as its stages read it.

    Attributes:
        cfg: the composed config, with a name; of a run that is its own baseline, without `compare`.
        folder: where its results are, or will be; its hash is the run's identity.
        beside: the plan of its baseline, or None.
        before: the plan of the round before, in a loop (`kd.experiment.rounds`); or None.
    """

    cfg: DictConfig
    folder: RunFolder
    beside: "Plan | None" = None
    before: "Plan | None" = None

    @classmethod
    def of(cls, cfg: DictConfig) -> "Plan":
        """Raises ValueError, FileNotFoundError: something that the run reads is not there or is damaged."""
        earlier = round_before(cfg)
        before = None if earlier is None else cls.of(earlier)
        cfg = of_round(_named(cfg))
        if cfg.compare is None:
            return cls._at(cfg, before=before)
        other = _named(baseline(cfg))
        if alike(alone := _alone(cfg), other):
            return cls._at(alone)
        return cls._at(cfg, cls._at(other), before)

    @classmethod
    def _at(cls, cfg: DictConfig, beside: "Plan | None" = None, before: "Plan | None" = None) -> "Plan":
        return cls(cfg, RunFolder.of(cfg.run.root, cfg.name, identity(cfg)), beside, before)

    @property
    def wandb(self) -> Any:
        """The section `logger.wandb`; None where there is none, or where it is a logger by itself."""
        found = self.cfg.logger.get("wandb")
        return None if not isinstance(found, Mapping) or "_target_" in found else found

    def __iter__(self) -> Iterator["Plan"]:
        """The rounds of its loop, the first one first; this one is the last."""
        if self.before is not None:
            yield from self.before
        yield self


def group_in_wandb(plan: Plan, sweep: str | None) -> None:
    """Give the run, the run beside it and the earlier rounds of its loop one group of W&B, unless the config names one.

    sweep: the name of the sweep's folder; None: a run by itself, with its name without the seed as group.
    """
    group = sweep or re.sub(rf"-s{plan.cfg.seed}$", "", plan.cfg.name)
    for member, job_type in [(one, None) for one in plan] + [(one.beside, "baseline") for one in plan]:
        if member is not None and member.wandb is not None:
            with open_dict(member.wandb):
                member.wandb.group = member.wandb.group or group
                member.wandb.job_type = job_type or member.wandb.job_type


def valid(cfg: DictConfig) -> None:
    """Raise ValueError, in one sentence, for what cannot run."""
    check_config(cfg, models=check_models)
    check_machine(plain(cfg))
    check_parts(cfg)
    check_models(cfg)
    check_judges(cfg)
    monitored(cfg)
    check_evaluation(cfg)


def check_evaluation(cfg: DictConfig) -> None:
    """Raises ValueError for what the evaluation names and could not measure (`kd.evaluation.measurable`)."""
    parts = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("evaluation", "skill")}
    _check_evaluation(json.dumps(parts, sort_keys=True), cfg.checkpoint.answers, cfg.teacher._target_ is not None)


@cache  # jobs of a sweep that differ elsewhere read no records again
def _check_evaluation(parts: str, answers: int, teacher: bool) -> None:
    config = OmegaConf.create(json.loads(parts))
    evaluation, own = instantiate(config.evaluation), load_skill(config.skill)
    skills = [own, *own.parts.values(), *(load_skill(skill_node(name)) for name in evaluation.skills)]
    check_measurable(evaluation, skills, curve=answers, teacher=teacher)


def check(cfg: DictConfig) -> RunFolder | None:
    """Raise ValueError, in one sentence, for what cannot run; else the folder that would hold the results.

    Called for every job of a sweep before the first one starts. No weight is loaded.
    """
    valid(cfg)
    return None if cfg.run.force else Plan.of(cfg).folder


def _named(cfg: DictConfig) -> DictConfig:
    """The config with a name, if the user gave none."""
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.name is None:
            skill = re.sub(r"[^\w.-]+", "-", load_skill(cfg.skill).name)  # it may be that of a file
            rounds = [f"r{cfg.loop.rounds}"] if cfg.loop.rounds > 1 else []
            cfg.name = "-".join([skill, "+".join(cfg.objective), *rounds, f"s{cfg.seed}"])
    return cfg


def baseline(cfg: DictConfig) -> DictConfig:
    """The run of equal steps, or budget, on the references themselves whose objective is `cfg.compare`.

    Settings that only its neighbour needs are reset to their defaults, so that a sweep shares one baseline.
    """
    other = variant(cfg, objective=cfg.compare, **references_alone())
    with open_dict(other):
        other.name, other.omits = None, []
        if cfg.loop.student == "continue":  # the student of the last round has trained in all of them
            other.optim.steps = cfg.loop.rounds * cfg.optim.steps
        other.loop.update({"rounds": 1, "student": "restart"})
        other.trainer.update({"devices": 1, "strategy": "auto"})
        if not cfg.targets.cached or not asks_teacher(plain(other)):  # else it reads what was kept for its neighbour
            _free_of_targets(other)
            other.temperature, other.temperature_squared = 1.0, False
    return _alone(other)


def _free_of_targets(other: DictConfig) -> None:
    """Leave the teacher of a cached run unloaded in its baseline too: a student may still be cut out of its files.

    Where the teacher's tokens are others, the cache is opened for them: records have to fit in both.
    """
    if other.targets.cached and not same_rows(plain(other)):
        other.targets.audit = None
        return
    if other.targets.cached:
        other.teacher._target_ = None
    other.targets = choice("targets", "full")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _alone(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.compare = None
    return cfg
