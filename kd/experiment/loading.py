"""Teachers and students of a config, loaded."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from kd.artifacts import verified
from kd.components.instantiation import instantiate
from kd.composition.interfaces import made_by
from kd.composition.targets import kept
from kd.experiment.compatibility import described
from kd.experiment.identity import content_digests
from kd.experiment.preparation import targets_folder
from kd.models.language_model import LanguageModel
from kd.models.networks import pretrained
from kd.seeding import seeded
from kd.teachers.cached import Cached
from kd.teachers.listed import Listed
from kd.teachers.truncated import Approximated
from kd.training.trainer import sharding_of
from kd.workers.actors import RaySettings, RayWorkers
from kd.workers.copies import Copied, Copies


def load_student(cfg: DictConfig) -> LanguageModel:
    """The student before the first step; random weights depend on the seed and a name only."""
    with seeded(cfg.seed, "student"):
        return instantiate(cfg.student.model, _convert_="all")


def load_exported(cfg: DictConfig, folder: Path) -> LanguageModel:
    """The student that a finished run exported to `folder`. Raises ValueError where it was changed since."""
    verified(folder)
    return pretrained(source={"address": f"local:{folder}"}, dtype=cfg.student.model.dtype)


def kept_teacher(cfg: DictConfig) -> Any:
    """The teacher of a run under its `targets`: whole, approximated or cached."""
    alone = sharding_of(cfg) is not None
    if cfg.get("targets", {}).get("_target_") is None:
        return load_teacher(cfg.teacher, alone=alone)
    targets = kept(cfg.targets)
    if cfg.targets.cached:
        return Cached(targets_folder(cfg), targets)
    teacher = load_teacher(cfg.teacher, alone=alone)
    return Listed(teacher, targets) if teacher.lists_targets else Approximated(teacher, targets)


def load_teacher(node: DictConfig, *, alone: bool = False) -> Any:
    """The teacher of a config node, or None. Jobs of one process share it while its files stay the same: it is frozen.

    A teacher that is made of the student is made for each job, and so is one that is to be sharded (`alone`), for it is
    whole on the first rank only.
    """
    if node.get("_target_") is None:
        return None
    content = OmegaConf.to_container(node, resolve=True)
    text = json.dumps(content, sort_keys=True)
    if alone or made_by("teacher", node).follows_student:
        return made(text)
    return _shared_teacher(text, json.dumps(content_digests(content), sort_keys=True))


@lru_cache(maxsize=1)
def _shared_teacher(node: str, files: str) -> Any:
    return made(node)


def made(node: str) -> Any:
    """The model of a node, given as JSON; its random weights, if it has any, are the same for all seeds of a run."""
    with seeded(0, "teacher"):  # whatever the run's seed; it matters to random weights only
        return instantiate(described(json.loads(node)), _convert_="all")


def device(cfg: DictConfig) -> torch.device:
    """The device of this process under `trainer.accelerator` and `trainer.devices`."""
    name, devices = cfg.trainer.accelerator, cfg.trainer.get("devices", "auto")
    if name not in ("gpu", "cuda", "auto") or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", devices[rank] if OmegaConf.is_list(devices) else rank)


# --- in actors of Ray ---


def ray_workers(cfg: DictConfig, load: Callable[[Mapping[str, Any], Any], Any]) -> RayWorkers | None:
    """The actors of `run.ray`, none of which is started yet; None where the run has none.

    load: gives, in an actor, a model of the config, which is in plain containers there.
    """
    own = RaySettings(**(cfg.run.get("ray") or {}))
    if own.actors == 0:
        return None
    gpus = float(device(cfg).type == "cuda") if own.num_gpus is None else own.num_gpus
    there = cfg.copy()  # each actor sees its own GPU as the first, or none
    there.trainer.update({"accelerator": "gpu" if gpus else "cpu", "devices": "auto"})
    content: Any = OmegaConf.to_container(there, resolve=True)
    return RayWorkers(partial(load, content), replace(own, num_gpus=gpus))


def copies_of(cfg: DictConfig, student: str, teacher: str | None) -> Copies | None:
    """The actors of `run.ray` with copies of the models that are evaluated; None where the run has none.

    Args:
        cfg: a config of which everything is prepared.
        student, teacher: the identities of both as they were loaded.
    """
    workers = ray_workers(cfg, _evaluated)
    roles = {student: "student"} if teacher is None else {teacher: "teacher", student: "student"}
    return None if workers is None else Copies(workers, workers.close, roles)


def _evaluated(content: Mapping[str, Any], copied: Copied) -> LanguageModel:
    """A model of a run as it is evaluated, loaded in another process for its use alone."""
    cfg = OmegaConf.create(dict(content))

    def load(role: str) -> LanguageModel:
        return load_student(cfg) if role == "student" else load_teacher(cfg.teacher, alone=True).system

    return copied.loaded(load).to(device(cfg))
