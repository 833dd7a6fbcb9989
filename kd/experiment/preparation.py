"""Preparations: the teacher, and the student, are first tuned on the task, as in many papers.

`prepare: {objective, skill, steps}` in a teacher's or a student's yaml (all keys:
`kd.composition.sections.Prepare`) makes that checkpoint on demand, by the same training as every run, once: it is
cached by the hash of everything it depends on, locked while it is made, and continued where it was interrupted.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.artifacts import cache_root, store, verified
from kd.components.axes import AXES, references_alone
from kd.composition.sections import Prepare, prepared_roles
from kd.experiment.export import licence_of
from kd.experiment.identity import TRAINING, identity
from kd.locks import locked
from kd.models.hardware import OPTIONS
from kd.progress import part, remark
from kd.runs.folder import RunFolder
from kd.secrets import unrevealed
from kd.training.finiteness import NotFinite

PREPARED = "kd.models.networks.pretrained"
MAX_TOKENS = 8192  # of a preparation's micro-batch
TARGETS = ("kd.teachers.targets", "kd.teachers.target_store")  # the code that cached targets depend on
_named = set[Path]()  # the checkpoints that this process made, or has stated to be there
_composed: WeakKeyDictionary[Any, dict[tuple[str, ...], DictConfig]] = WeakKeyDictionary()  # of each start of Hydra's


def prepared(cfg: DictConfig, train: Callable[[DictConfig, RunFolder, Path], None]) -> DictConfig:
    """The config with every `prepare` done: its model is a checkpoint in the cache.

    `train(config, run_folder, export_to)` trains `config`'s student and exports it.
    """

    def make(cfg: DictConfig, role: str, folder: Path) -> None:
        recipe = _recipe(cfg, role)
        if not folder.exists():
            _make(recipe, folder, role, train)
        elif folder not in _named:
            with part(f"prepare {role}", shared=True):
                remark(f"cached: {_training(recipe)}, made before")
        _named.add(folder)

    return _from_checkpoints(cfg, make)


def unprepared(cfg: DictConfig) -> dict[str, Path]:
    """The roles whose preparation is not made yet, and the folders of their checkpoints."""
    found: dict[str, Path] = {}
    _from_checkpoints(cfg, lambda cfg, role, folder: found.update({} if folder.exists() else {role: folder}))
    return found


def as_prepared(cfg: DictConfig) -> DictConfig:
    """The config with the checkpoints of all preparations that are already made."""
    return _from_checkpoints(cfg, lambda cfg, role, folder: None)


def _from_checkpoints(cfg: DictConfig, visit: Callable[[DictConfig, str, Path], None]) -> DictConfig:
    """`cfg` with the roles read from their prepared checkpoints, one after another: a student that is cut out of the
    teacher is cut out of the prepared one, and named by it.

    `visit(cfg, role, folder)` is called for each before it is read. A role that has no checkpoint after
    the call either stays as it is.
    """
    cfg = cfg.copy()
    for role in prepared_roles(cfg):
        node = OmegaConf.select(cfg, role)
        if node.get("prepare") is None:
            continue
        folder = checkpoint_folder(cfg, role)
        visit(cfg, role, folder)
        if folder.exists():
            verified(folder)
            read_from(folder, node, lora=node.model.get("lora") if role == "student" else None)
    return cfg


def read_from(folder: Path, node: DictConfig, lora: Any) -> None:
    """Make the checkpoint in `folder` the model of a teacher's or student's node."""
    with open_dict(node):
        source = {"address": f"local:{folder}"}
        own = {name: node.model[name] for name in OPTIONS if node.model.get(name) is not None}
        node.model = {"_target_": PREPARED, "source": source, "dtype": node.model.dtype, "lora": lora, **own}
        node.prepare = None


def checkpoint_folder(cfg: DictConfig, role: str) -> Path:
    """The folder of the prepared checkpoint of a role (`kd.composition.sections.prepared_roles`).

    The roles before it are prepared in `cfg`.
    """
    recipe = _recipe(cfg, role)
    with open_dict(recipe):
        unused = [axis for axis in references_alone() if not recipe[axis] or recipe[axis].get("_target_", axis) is None]
        for key in (*unused, "budget"):  # the steps are given
            recipe.pop(key)
        for key in ("lm_window", "lm_length"):
            recipe.data.pop(key)
        recipe.student.pop("licence")  # it changes no weight
    return cache_root() / "prepared" / identity(recipe, TRAINING)


def targets_folder(cfg: DictConfig) -> Path:
    """The folder of the cached targets of `cfg.teacher`, as `cfg.targets` keeps them; the same for every tail rule.

    The config is one of which everything is `prepared`, so that the teacher is named by its content.
    """
    teacher, targets = (OmegaConf.to_container(cfg[group], resolve=True) for group in ("teacher", "targets"))
    for node, around in ((teacher, AXES["teacher"].beside), (targets, {"tail", *AXES["targets"].beside})):
        for key in around:
            node.pop(key, None)  # type: ignore[union-attr, arg-type, call-arg]
    content = OmegaConf.create({"teacher": teacher, "targets": targets})
    return cache_root() / "targets" / identity(content, TARGETS)


def choice(group: str, name: str) -> Any:
    """The content of `conf/<group>/<name>.yaml`, interpolations left as they are."""
    return OmegaConf.create(OmegaConf.to_container(_defaults(f"{group}={name}")[group], resolve=False))


def variant(cfg: DictConfig, **choices: str) -> DictConfig:
    """`cfg` with other members of some groups."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for group, name in choices.items():
            cfg[group] = choice(group, name)
    return cfg


def _defaults(*overrides: str) -> DictConfig:
    """The default config but for these overrides, read-only. Composed once, for Hydra takes a quarter of a second."""
    known = _composed.setdefault(hydra, {}) if (hydra := GlobalHydra.instance().hydra) else {}
    if overrides not in known:
        known[overrides] = compose(config_name="config", overrides=list(overrides))
    return known[overrides]


def _recipe(cfg: DictConfig, role: str) -> DictConfig:
    """The run that makes `role`'s checkpoint, from the defaults, the preparation's own settings and the skill.

    Nothing else of the run is in it: every job of a sweep, whatever it varies, must meet the same teacher.
    """
    node = OmegaConf.select(cfg, role)
    prepare = Prepare(**OmegaConf.to_container(node.prepare, resolve=True))  # type: ignore[arg-type]
    model: dict[str, Any] = {name: value for name, value in unrevealed(node.model).items() if name != "load_in"}
    groups = {"teacher": "none", "alignment": "none", "evaluation": "none", "objective": prepare.objective}
    recipe = _defaults(*(f"{group}={name}" for group, name in groups.items())).copy()
    skill = cfg.skill if prepare.skill is None else choice("skill", prepare.skill)
    with open_dict(recipe):
        recipe.skill = unrevealed(skill)
        recipe.student = {"model": {**model, "lora": None}, "prepare": None, "licence": _licence(cfg, role)}
        recipe.pop("targets")  # of a teacher, and there is none here
        recipe.compare, recipe.seed = None, prepare.seed
        recipe.optim.update({key: getattr(prepare, key) for key in ("steps", "lr", "window", "schedule")})
        recipe.data.update({"max_length": cfg.data.max_length, "max_tokens": MAX_TOKENS})
        recipe.trainer.update({key: cfg.trainer[key] for key in ("accelerator", "precision")})
        recipe.checkpoint.update({"every": 500, "validate": max(prepare.steps // 4, 1)})
    return recipe


def _training(recipe: DictConfig) -> str:
    return f"{recipe.optim.steps} steps of {'+'.join(recipe.objective)}"


def _licence(cfg: DictConfig, role: str) -> str | None:
    """The licence of `role` before it is prepared."""
    teacher = OmegaConf.to_container(cfg.teacher, resolve=True)
    node: dict[str, Any] = OmegaConf.to_container(OmegaConf.select(cfg, role), resolve=True)  # type: ignore[assignment]
    return licence_of(node, {"teacher": teacher})


def _make(recipe: DictConfig, folder: Path, role: str, train: Callable[[DictConfig, RunFolder, Path], None]) -> None:
    with locked(folder):
        if folder.exists():  # another job made it while we waited
            return
        run = RunFolder(Path(f"{folder}.run"))
        run.start(OmegaConf.to_yaml(OmegaConf.create(unrevealed(recipe))), [])
        try:
            with part(f"prepare {role}", shared=True):
                remark(f"{_training(recipe)}, once for all runs; kept in {folder}")
                store(folder, lambda partial: train(recipe, run, partial), kind=f"prepared {role.partition('.')[0]}")
        except NotFinite as error:  # its remedies are keys of the run; a preparation has its own
            raise NotFinite(f"{role}.prepare: {str(error).replace('optim.lr', f'{role}.prepare.lr')}") from None
        shutil.rmtree(run.checkpoints, ignore_errors=True)
