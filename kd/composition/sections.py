"""The parts of the config without a `_target_`: their keys, types and bounds, and the trainer's arguments."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pydantic import Field, NonNegativeInt, PositiveInt

from kd.components import axes
from kd.components.choices import choices, meant
from kd.components.signatures import check_call, shown, suggestion
from kd.components.synonyms import KEYS, NOTHING
from kd.objectives.divergence import Positive
from kd.objectives.reduction import Reduction
from kd.reports.papers.published import read_published
from kd.training.budget import Limits
from kd.training.observers import MONITORED
from kd.training.optimization import Optimization, Rate
from kd.training.sharding import NAME as SHARDED
from kd.workers.actors import RaySettings

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
ONE_PROCESS = ("spawn", "fork", "notebook")  # strategies whose ranks do not run the command line again

# Arguments of lightning.Trainer that this project sets by other keys, or itself (None).
ELSEWHERE = {
    "accumulate_grad_batches": "optim.window",
    "gradient_clip_val": "optim.clip",
    "gradient_clip_algorithm": "optim.clip, which bounds the norm",
    "max_steps": "optim.steps",
    "min_steps": "optim.steps",
    "max_epochs": "optim.steps",
    "min_epochs": "optim.steps",
    "max_time": "optim.steps",
    "val_check_interval": "checkpoint.validate",
    "check_val_every_n_epoch": "checkpoint.validate",
    "limit_val_batches": "checkpoint.records",
    "limit_train_batches": "optim.steps",
    "log_every_n_steps": "log_every",
    "default_root_dir": "run.root",
    "logger": "logger=tensorboard, logger=wandb or another file of conf/logger",
    "fast_dev_run": "optim.steps and evaluation=quick",
    "enable_checkpointing": "checkpoint.every",
    "num_sanity_val_steps": "checkpoint.validate_first",
    "use_distributed_sampler": None,
    "enable_model_summary": None,
}

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Settings:
    """The keys at the top level of `conf/config.yaml`."""

    seed: Seed
    temperature: Positive
    temperature_squared: bool
    reduction: Reduction
    compare: Text | None
    log_every: PositiveInt
    name: Text | None = None
    omits: Sequence[Text] = ()
    paper: Text | None = None


@dataclass(frozen=True)
class Data:
    """The section `data`. loss_on: whether earlier answers of a conversation are learnt, as the last one is."""

    max_length: Tokens
    loss_on: Literal["last", "all"]
    max_tokens: Tokens
    workers: Annotated[int, Field(ge=0, le=256)]
    lm_window: Annotated[int, Field(ge=1, le=2**20)]
    lm_length: Tokens


@dataclass(frozen=True)
class Checkpoint:
    """The section `checkpoint`; `monitor` is one of the metrics that validations log, `answers` their prompts that are
    answered, and `patience` the validations without a better value after which a run ends."""

    every: PositiveInt
    validate: PositiveInt
    validate_first: bool
    records: PositiveInt
    monitor: Text
    use: Literal["last", "best"]
    answers: NonNegativeInt = 0
    patience: PositiveInt | None = None


@dataclass(frozen=True)
class Loop:
    """The section `loop` (`kd.experiment.rounds`)."""

    rounds: Annotated[int, Field(ge=1, le=1000)]
    student: Literal["restart", "continue"]
    previous: None = None


@dataclass(frozen=True)
class Run:
    """The section `run`."""

    root: Text
    force: bool
    prerequisites_only: bool
    allow: Sequence[Text] = ()
    page: bool = True
    open: bool = False
    ray: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Student:
    """The group `student`. source: the address of its checkpoint, with the keys beside it; `model` refers to it."""

    model: Mapping[str, Any]
    source: str | Mapping[str, Any] | None = None
    prepare: Mapping[str, Any] | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Augmentation:
    """The group `augmentation`: stages by name, in the order in which records pass them."""

    stages: Mapping[str, Any]


@dataclass(frozen=True)
class Prepare:
    """The preparation of a teacher or a student (`kd.experiment.preparation`).

    skill: a file of `conf/skill`, or None for the run's own. lr: the default is a checkpoint's, as in
    `conf/config.yaml`; small random weights bear a higher one. seed: not the run's, so that runs share what is made.
    """

    objective: Text
    skill: Text | None
    steps: PositiveInt
    lr: Rate = 5e-4
    window: Annotated[int, Field(ge=1, le=2**20)] = 32
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    seed: Seed = 0


@dataclass(frozen=True)
class Audit:
    """The section `targets.audit`: the interval and the size of comparisons of kept targets with the whole teacher."""

    every: PositiveInt | None
    records: PositiveInt


@dataclass(frozen=True)
class Wandb:
    """The section `logger.wandb`."""

    project: Text
    tags: Sequence[str]
    mode: Literal["offline", "online", "disabled"] | None
    entity: str | None
    group: str | None
    job_type: Text
    answers: NonNegativeInt
    artifact: Literal["none", "files", "weights"]


SECTIONS: Mapping[str, Callable] = {
    "optim": Optimization,
    "budget": Limits,
    "data": Data,
    "checkpoint": Checkpoint,
    "run": Run,
    "run.ray": RaySettings,
    "loop": Loop,
    "student": Student,
    "augmentation": Augmentation,
    "targets.audit": Audit,
    "logger.wandb": Wandb,
}


def prepared_roles(config: Mapping[str, Any]) -> dict[str, Any]:
    """Roles that may be tuned first (`prepare`), by dotted path: teachers, then the student, maybe cut from one."""
    members = config["teacher"].get("members") or {}
    of_ensemble = {f"teacher.members.{name}": member for name, member in members.items()}
    return {"teacher": config["teacher"], **of_ensemble, "student": config["student"]}


def check_sections(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a missing section, an unknown key, a value that does not fit."""
    _check_top(config)
    for path, schema in SECTIONS.items():
        _check_section(path, config, schema)
    _check_monitor(config["checkpoint"])
    _check_stages(config["augmentation"]["stages"])
    _check_file("compare", config["compare"], "objective")
    for role, node in prepared_roles(config).items():
        _check_licence(f"{role}.licence", node.get("licence"))
        _check_section(f"{role}.prepare", config, Prepare)
        for group in ("objective", "skill"):
            _check_file(f"{role}.prepare.{group}", (node.get("prepare") or {}).get(group), group)


def _check_top(config: Mapping[str, Any]) -> None:
    own = {field.name for field in fields(Settings)}
    groups = set(axes.sections())
    sections = {path for path in SECTIONS if "." not in path} | groups
    for group in sorted(sections):
        if not isinstance(config.get(group), Mapping):
            remedy = f"{group}={_some(choices(group))}" if group in groups else f"the section {group}"
            raise ValueError(f"{group}={shown(config.get(group))}: a run cannot do without it; give {remedy}")
    for key in (key for key in config if key not in own | sections):
        near = f"did you mean {KEYS[key]}?" if key in KEYS else suggestion(key, own | sections)
        raise ValueError(f"{key}: the config has no such key; {near}")
    check_call("", {key: value for key, value in config.items() if key in own}, Settings, name="the config")
    if config.get("paper") is not None:
        read_published(config["paper"])


def _some(names: Sequence[str], most: int = 12) -> str:
    """The names in one sentence; of many, the first."""
    if len(names) <= most:
        return " or ".join(names)
    return f"{' or '.join(names[:3])}, or another of {len(names)}"


def _check_section(path: str, config: Mapping[str, Any], schema: Callable) -> None:
    node: Any = config
    for key in path.split("."):
        node = None if node is None else node.get(key)
    if isinstance(node, Mapping):
        check_call(path, node, schema, name=path)
    elif node is not None:
        raise ValueError(f"{path}={shown(node)}: this is a section of its own; give null or its keys")


def _check_monitor(checkpoint: Mapping[str, Any]) -> None:
    """Check the form of the monitored metric; the skill's name and metrics are checked by `kd.experiment.monitor`."""
    monitor = checkpoint["monitor"]
    split, slash, metric = monitor.partition("/")
    if monitor not in MONITORED and (split == "validation" or not slash or not metric):
        raise ValueError(
            f"checkpoint.monitor={monitor}: should be one of {', '.join(MONITORED)}, or <skill>/<metric> beside "
            "checkpoint.answers, as spell_backward/verifier_score"
        )
    if monitor not in MONITORED and not checkpoint.get("answers"):
        raise ValueError(
            f"checkpoint.monitor={monitor} is a score of answers to validation prompts, of which "
            "checkpoint.answers=0 are answered; set checkpoint.answers=32"
        )


def _check_stages(stages: Any) -> None:
    """Checks that each stage has a `_target_`: `_check_section` skips values that hold one."""
    if not isinstance(stages, Mapping):
        raise ValueError(
            f"augmentation.stages={shown(stages)}: each stage has a name; write augmentation.stages="
            "{labeling: {_target_: ...}} instead of a list"
        )
    for name, stage in stages.items():
        if not isinstance(stage, Mapping) or not stage.get("_target_"):
            raise ValueError(
                f"augmentation.stages.{name}={shown(stage)}: a stage calls a class; give its _target_, or leave the "
                f"stage out with ~augmentation.stages.{name}"
            )


def _check_licence(path: str, licence: Any) -> None:
    """Check the type of a licence, which the card of the exported student names."""
    if licence is not None and not (isinstance(licence, str) and licence.strip()):
        wanted = "should be the name of a licence, such as Apache-2.0, or null (unknown)"
        raise ValueError(f"{path}={shown(licence)}: {wanted}")


def _check_file(path: str, name: str | None, group: str) -> None:
    if name is None or name in choices(group):
        return
    if name.lower() in NOTHING:
        raise ValueError(f"{path}={name}: conf/{group} has no {name}.yaml; did you mean {path}=null?")
    near = meant(group, name, choices(group))
    question = f"did you mean {near}?" if near else suggestion(name, choices(group))
    raise ValueError(f"{path}={name}: conf/{group} has no {name}.yaml; {question}")


def check_trainer(trainer: Mapping[str, Any], window: int) -> None:
    """Raises ValueError for arguments that `lightning.Trainer` does not take, other keys set, or cannot work."""
    import lightning
    from lightning.pytorch.strategies import StrategyRegistry

    for key in (key for key in trainer if key in ELSEWHERE):
        where = f"another key sets this; set {ELSEWHERE[key]}" if ELSEWHERE[key] else "the run sets this; leave it out"
        raise ValueError(f"trainer.{key}={shown(trainer[key])}: {where}")
    given = {key: value for key, value in trainer.items() if key not in ("callbacks", "sharding")}  # checked apart
    check_call("trainer", given, lightning.Trainer, name="lightning.Trainer")
    _check_precision(trainer.get("precision", PRECISIONS[0]), trainer.get("accelerator", "auto"))
    strategies = ["auto", SHARDED, *(name for name in StrategyRegistry.available_strategies() if "fsdp" not in name)]
    if (strategy := trainer.get("strategy", "auto")) not in strategies:
        near = suggestion(str(strategy), strategies)
        raise ValueError(f"trainer.strategy={shown(strategy)}: unknown to Lightning; {near}")
    devices = learning_processes(trainer)
    if devices is not None and window < devices:
        raise ValueError(
            f"optim.window={window} is smaller than the {devices} devices; "
            f"give each at least one record, optim.window={devices}, or take trainer.devices={window}"
        )
    _check_launcher(strategy, devices)


def _check_precision(precision: Any, accelerator: str) -> None:
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if precision == "16-mixed" and on_cpu:
        raise ValueError(
            "trainer.precision=16-mixed is for a GPU, and Lightning would compute in bfloat16 on this CPU; take "
            "trainer.precision=bf16-mixed"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={shown(precision)} is not one of {', '.join(PRECISIONS)}")


def learning_processes(trainer: Mapping[str, Any]) -> int | None:
    """The number of processes that learn together, if the config determines it."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, list):
        return len(devices) * trainer.get("num_nodes", 1)
    count = int(devices) if re.fullmatch(r"\d+", str(devices)) else 0
    return count * trainer.get("num_nodes", 1) or None


def _check_launcher(strategy: str, devices: int | None) -> None:
    """Refuse ranks in a sweep of one process: Lightning would start each with the command line of the whole sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return
    alone = devices == 1 or (devices is None and strategy in ("auto", "single_device"))
    in_process = HydraConfig.get().launcher.get("_target_", "").endswith("BasicLauncher")
    if in_process and not alone and not strategy.endswith(ONE_PROCESS):
        raise ValueError(
            f"trainer.strategy={strategy} under hydra/launcher=basic: each rank would start the whole sweep again; "
            "take hydra/launcher=process, a process for each job"
        )
