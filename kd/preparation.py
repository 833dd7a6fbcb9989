"""What papers do before they distil: the teacher, and the student, are first tuned on the task.

`prepare: {objective, skill, steps, lr, ...}` in a teacher's or a student's yaml makes that checkpoint on demand, by the
same training as every run, once: it is cached by the hash of everything it depends on, locked while it is made, and
continued where it was interrupted.
"""

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from hydra import compose
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict

import kd
from kd.models.sources import cache_root, digest
from kd.run_folder import RunFolder, config_hash

PREPARED = "kd.models.networks.pretrained"
MAX_TOKENS = 8192  # of a preparation's micro-batch


def prepared(cfg: DictConfig, train: Callable[[DictConfig, RunFolder, Path], None]) -> DictConfig:
    """The same config with every `prepare` done: its model is a checkpoint in the cache.

    `train(config, run_folder, export_to)` trains `config`'s student and exports it.
    """
    cfg = cfg.copy()
    for role in ("teacher", "student"):
        if cfg[role].get("prepare") is None:
            continue
        folder = checkpoint_folder(cfg, role)
        if not folder.exists():
            _make(_recipe(cfg, role), folder, role, train)
        with open_dict(cfg):
            lora = cfg[role].model.get("lora") if role == "student" else None
            source = {"address": f"local:{folder}"}
            cfg[role].model = {"_target_": PREPARED, "source": source, "dtype": cfg[role].model.dtype, "lora": lora}
            cfg[role].prepare = None
    return cfg


def checkpoint_folder(cfg: DictConfig, role: str) -> Path:
    """Where `role`'s prepared checkpoint is, or will be."""
    return cache_root() / "prepared" / identity(_recipe(cfg, role))


def identity(cfg: DictConfig) -> str:
    """The hash that names a run: its resolved config, the content of its sources and of code that is not `kd`'s,
    the version of `kd`.
    """
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config_hash(config, digests=_digests(config), version=kd.__version__)


def choice(group: str, name: str) -> Any:
    """The content of `conf/<group>/<name>.yaml`, interpolations left as they are."""
    node = compose(config_name="config", overrides=[f"{group}={name}"])[group]
    return OmegaConf.create(OmegaConf.to_container(node, resolve=False))


def variant(cfg: DictConfig, **choices: str) -> DictConfig:
    """`cfg` with other members of some groups."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for group, name in choices.items():
            cfg[group] = choice(group, name)
    return cfg


def _recipe(cfg: DictConfig, role: str) -> DictConfig:
    """The run that makes `role`'s checkpoint, from the defaults, the preparation's own settings and the skill.

    Nothing else of the run is in it: every job of a sweep, whatever it varies, must meet the same teacher.
    """
    prepare = cfg[role].prepare
    model: dict[str, Any] = OmegaConf.to_container(cfg[role].model, resolve=True)  # type: ignore[assignment]
    groups = {"teacher": "none", "alignment": "none", "evaluation": "none", "objective": prepare.objective}
    recipe = compose(config_name="config", overrides=[f"{group}={name}" for group, name in groups.items()])
    skill = cfg.skill if prepare.skill is None else choice("skill", prepare.skill)
    with open_dict(recipe):
        recipe.skill = OmegaConf.to_container(skill, resolve=True)
        recipe.student = {"model": {**model, "lora": None}, "prepare": None}
        recipe.compare, recipe.seed = None, prepare.seed
        recipe.optim.update({key: prepare[key] for key in ("steps", "lr", "window", "schedule")})
        recipe.data.update({"max_length": cfg.data.max_length, "max_tokens": MAX_TOKENS})
        recipe.trainer.update({key: cfg.trainer[key] for key in ("accelerator", "precision")})
        recipe.checkpoint.update({"every": 500, "validate": max(prepare.steps // 4, 1)})
    return recipe


def _make(recipe: DictConfig, folder: Path, role: str, train: Callable[[DictConfig, RunFolder, Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if folder.exists():  # another job made it while we waited
            return
        print(f"preparing the {role}: {recipe.optim.steps} steps of {'+'.join(recipe.objective)}, once; then {folder}")
        run, exported = RunFolder(Path(f"{folder}.run")), Path(f"{folder}.export")
        run.start(OmegaConf.to_yaml(recipe, resolve=True), [])
        shutil.rmtree(exported, ignore_errors=True)
        train(recipe, run, exported)
        os.replace(exported, folder)
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def _digests(node: Any) -> dict[str, str]:
    """Content hashes below `node`: of all sources, by address, and of the files that foreign targets stand in."""
    if isinstance(node, list):
        return {k: v for child in node for k, v in _digests(child).items()}
    if not isinstance(node, dict):
        return {}
    own = {}
    if "address" in node:
        own[node["address"]] = digest(node["address"], **{k: node[k] for k in ("member", "sha256") if k in node})
    if (target := node.get("_target_")) and not target.startswith("kd."):
        file = inspect.getsourcefile(get_object(target))
        own[target] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    return own | {k: v for child in node.values() for k, v in _digests(child).items()}
