"""The memory and the devices that a run may take on this machine."""

from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from kd.doctor.layout import Layout

ALL = ("auto", "-1")  # values of trainer.devices


def on_gpu(cfg: DictConfig) -> bool:
    """Return whether the run is configured for a GPU and there is one."""
    return cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def layout_of(cfg: DictConfig) -> Layout:
    """The layout of a run on this machine, with all of its GPUs where the run takes as many as there are."""
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    if on_gpu(cfg) and str(trainer.get("devices", "auto")) in ALL:
        trainer["devices"] = torch.cuda.device_count()
    return Layout.of(trainer)


def available(cfg: DictConfig) -> int:
    """Bytes that are free now, on the GPU if the run uses one, else in the machine or container."""
    if on_gpu(cfg):
        return torch.cuda.mem_get_info()[0]
    return min([psutil.virtual_memory().available, *_container_room()])


def _container_room(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that are left in a container (cgroup v2), if it has a limit."""
    limit, used = root / "memory.max", root / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]
