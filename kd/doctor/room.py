"""The memory that a run may take on this machine."""

from pathlib import Path

import psutil
import torch
from omegaconf import DictConfig


def on_gpu(cfg: DictConfig) -> bool:
    """Return whether the run is configured for a GPU and there is one."""
    return cfg.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


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
