"""The places of a run's models: whole on each device, or divided among devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd.components.signatures import shown
from kd.composition.sections import learning_processes
from kd.training.sharding import NAME as SHARDED

DEEPSPEED = "deepspeed_stage_"
UNCOUNTED = "The number of devices depends on the machine and counts as one"
REMEDY = "give it, as trainer.devices=8"


@dataclass(frozen=True)
class Layout:
    """The number of devices, and among how many of them each kind of tensor is divided; 1: each has all of it.

    Attributes:
        devices: processes that learn together, on all machines; where the machine determines it, one.
        here: those of one machine.
        weights, gradients, moments: of the student.
        teacher: weights of the teacher.
        buckets: whether gradients are copied on their way to the other devices (DDP).
        reshards: whether the gathered weights of a block are freed after its forward pass (`trainer.sharding`).
        offloads: whether the teacher's weights are in host memory, and on the device block by block.
        on_cpu: whether the devices are processes on a CPU.
        counted: whether the config determines the number of devices.
    """

    devices: int = 1
    here: int = 1
    weights: int = 1
    gradients: int = 1
    moments: int = 1
    teacher: int = 1
    buckets: bool = False
    reshards: bool = True
    offloads: bool = False
    on_cpu: bool = False
    counted: bool = True

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> "Layout":
        """The layout of the group `trainer`.

        Raises ValueError for less than one device or machine.
        """
        nodes = trainer.get("num_nodes", 1)
        for key, value in (("devices", trainer.get("devices", "auto")), ("num_nodes", nodes)):
            if value in (0, "0", []) or (isinstance(value, int) and value < (-1 if key == "devices" else 1)):
                raise ValueError(f"trainer.{key}={shown(value)}: a run has one at least; give a number from 1 on")
        known = learning_processes(trainer)
        devices = known or 1
        strategy, sharding = str(trainer.get("strategy", "auto")), trainer.get("sharding") or {}
        stage = int(strategy.removeprefix(DEEPSPEED)[0]) if strategy.startswith(DEEPSPEED) else 0
        whole = devices if strategy == SHARDED else 1
        return cls(
            devices=devices,
            here=max(1, devices // nodes),
            weights=devices if stage >= 3 else whole,
            gradients=devices if stage >= 2 else whole,
            moments=devices if stage >= 1 else whole,
            teacher=whole,
            buckets=devices > 1 and (strategy == "auto" or strategy.startswith("ddp")),
            reshards=bool(sharding.get("reshard_after_forward", True)),
            offloads=bool(sharding.get("offload_teacher", False)) and strategy == SHARDED,
            on_cpu=trainer.get("accelerator") == "cpu",
            counted=known is not None,
        )

    @property
    def sharded(self) -> bool:
        """Return whether a device holds a part of the student's weights alone."""
        return self.weights > 1
