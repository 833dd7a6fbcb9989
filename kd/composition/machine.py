"""Checks of a run's needs of the machine and its surroundings, before anything is loaded: devices, folders, names,
servers, accounts; that the parts of a run can be made of their arguments, and that models can be sharded over devices.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd.components.axes import AXES, sections
from kd.components.instantiation import instantiate
from kd.components.signatures import check_call, shown, suggestion
from kd.composition.engines import wrapped
from kd.composition.interfaces import made_by
from kd.composition.places import check_folder, check_name
from kd.composition.targets import kept
from kd.generators.external_engine import ExternalEngine
from kd.models.sharding import Sharding
from kd.ray_cluster import check_installed
from kd.reports.wandb.account import logged_in
from kd.sources.addresses import cache_root
from kd.training.observers import try_observers
from kd.training.sharding import NAME as SHARDED

Node = Mapping[str, Any]
OF_PROJECT, LONGEST_PROJECT, LONGEST_TAG = "/\\#?%:", 128, 64  # what W&B forbids in a project's name, and its limits


def check_machine(config: Node) -> None:
    """Raises ValueError, in one sentence, for needs that this machine does not meet.

    config: the composed config, resolved.
    """
    check_name(config["name"])
    check_folder(f"run.root={config['run']['root']}", Path(config["run"]["root"]), "run.root=...")
    check_folder(f"KD_CACHE={cache_root()}", cache_root(), "KD_CACHE=... in the environment")
    if not _elsewhere():
        check_deepspeed(config)
        check_devices(config["trainer"])
    check_ray(config)
    if config["logger"].get("wandb") is not None:
        check_wandb(config["logger"]["wandb"])
    made_by("generator", config["generator"]).check_reachable("generator", config["generator"])


def check_ray(config: Node | DictConfig) -> None:
    """Raises ValueError where actors of Ray are to generate, and Ray is not installed."""
    if actors := (config["run"].get("ray") or {}).get("actors"):
        check_installed(f"run.ray.actors={actors}")


def check_parts(cfg: DictConfig) -> None:
    """Raises ValueError for an argument that the constructor of a part refuses; models are not made."""
    for group in sections():
        if not AXES[group].heavy and cfg[group].get("_target_") is not None:
            instantiate(cfg[group])
    for stage in cfg.augmentation.stages.values():
        instantiate(stage)
    try_observers(cfg)
    if cfg.targets.get("_target_") is not None:
        kept(cfg.targets)


def _elsewhere() -> bool:
    """Return whether a cluster runs the jobs, whose nodes may differ from this machine."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return False
    launcher = HydraConfig.get().launcher
    return launcher.get("cluster") == "slurm" or launcher.get("address") is not None


def check_deepspeed(config: Node) -> None:
    """Raises ValueError for DeepSpeed without its package, and for settings that its own gradients do not have."""
    strategy = str(config["trainer"].get("strategy", "auto"))
    if not strategy.startswith("deepspeed"):
        return
    if find_spec("deepspeed") is None:
        raise ValueError(
            f"trainer.strategy={strategy} needs the package deepspeed, which is not installed; take trainer=fsdp, "
            "which needs no further package, or install the extra (pip install -e '.[deepspeed]')"
        )
    if config["optim"]["clip"] is not None:
        raise ValueError(
            f"optim.clip={config['optim']['clip']} bounds gradients that trainer.strategy={strategy} keeps in parts of "
            "its own; set optim.clip=null, or take trainer=fsdp"
        )


def check_devices(trainer: Node) -> None:
    """Raises ValueError for an accelerator that this machine lacks, and for more devices than there are."""
    from lightning.pytorch.accelerators import AcceleratorRegistry

    name = str(trainer.get("accelerator", "auto"))
    known = sorted({"auto", "gpu", *AcceleratorRegistry.available_accelerators()})
    if name not in known:
        raise ValueError(f"trainer.accelerator={name}: unknown to Lightning; {suggestion(name, known)}")
    kinds = {"gpu": ("cuda", "mps"), "auto": ("cuda", "mps", "cpu")}.get(name, (name,))
    here = [kind for kind in kinds if kind == "cpu" or AcceleratorRegistry.get(kind).is_available()]
    if not here:
        raise ValueError(
            f"trainer.accelerator={name}: torch finds no such device on this machine; take trainer=cpu, or install the "
            "torch that fits the driver"
        )
    _check_count(trainer.get("devices", "auto"), here[0], AcceleratorRegistry.get(here[0]))


def _check_count(devices: Any, kind: str, accelerator: Any) -> None:
    text = f"trainer.devices={shown(devices)}"
    if devices in ("auto", -1, "-1"):
        return
    wanted = devices if isinstance(devices, list) else re.split(r" *, *", str(devices).strip("[] "))
    if not wanted or not all(re.fullmatch(r"\d+", str(one)) for one in wanted):
        raise ValueError(f"{text} is no number of devices; give a number from 1 on, a list of indices, or auto")
    several = isinstance(devices, list) or len(wanted) > 1
    count = len(wanted) if several else int(wanted[0])
    if kind == "cpu":
        if several or count < 1:
            raise ValueError(f"{text}: processes on the CPU are counted from 1 on; give their number")
        return
    there = accelerator.auto_device_count()
    highest = max(map(int, wanted)) + 1 if several else count
    if not 1 <= highest <= there:
        raise ValueError(f"{text}: this machine has {there} of {kind}; give a number between 1 and {there}, or auto")


def check_wandb(settings: Node) -> None:
    """Raises ValueError for names that W&B would refuse during the run, and for a missing account."""
    project = str(settings["project"])
    if len(project) > LONGEST_PROJECT or any(sign in project for sign in OF_PROJECT):
        raise ValueError(
            f"logger.wandb.project={project}: W&B takes at most {LONGEST_PROJECT} characters and none of "
            f"{' '.join(OF_PROJECT)}; give another name"
        )
    if len(str(settings.get("group") or "")) > LONGEST_PROJECT:
        raise ValueError(f"logger.wandb.group has more than W&B's {LONGEST_PROJECT} characters; give a shorter one")
    for tag in settings.get("tags") or ():
        if not 1 <= len(str(tag)) <= LONGEST_TAG:
            raise ValueError(f"logger.wandb.tags: {tag!r} has not between 1 and {LONGEST_TAG} characters; change it")
    if settings["mode"] == "online" and not logged_in():
        raise ValueError(
            "logger.wandb.mode=online needs an account, and neither WANDB_API_KEY nor `wandb login` gives one; "
            "give one of them, or take logger.wandb.mode=offline"
        )


def check_sharding(config: Node) -> None:
    """Raises ValueError for settings of `trainer.sharding`, and parts of the run, that sharded models cannot have."""
    trainer = config["trainer"]
    if trainer.get("strategy") != SHARDED:
        return
    settings = trainer.get("sharding") or {}
    check_call("trainer.sharding", settings, Sharding)
    _check_teacher(config["teacher"])
    if settings.get("offload_teacher"):
        _check_offload(trainer, config["teacher"])
    for path, node in wrapped(config):
        engine = node.get("generator")
        if engine and issubclass(made_by(f"{path}.generator", engine), ExternalEngine):
            raise ValueError(
                f"{path}.generator writes the student's weights for another engine, but trainer.strategy={SHARDED} "
                "leaves each rank a part of them; take generator=torch, or trainer=ddp"
            )


def _check_teacher(teacher: Node) -> None:
    """Refuse members that read some records each: ranks would wait for one that reads nothing."""
    if teacher.get("combine") == "routed":
        raise ValueError(
            f"teacher.combine=routed has each record read by one member, but trainer.strategy={SHARDED} shards every "
            "member over all ranks, which have to read together; take combine=mean_probabilities, or trainer=ddp"
        )


def _check_offload(trainer: Node, teacher: Node) -> None:
    if trainer.get("accelerator") == "cpu":
        raise ValueError(
            "trainer.sharding.offload_teacher=true moves the teacher's shards from the GPU to host memory, where "
            "trainer.accelerator=cpu has them already; take false"
        )
    if teacher.get("_target_") is not None and made_by("teacher", teacher).follows_student:
        raise ValueError(
            "trainer.sharding.offload_teacher=true keeps the teacher in host memory, but this one is made of the "
            "student, which is on the GPU; take false"
        )
