"""Checks of a run whose models are sharded over ranks (`trainer=fsdp`)."""

from collections.abc import Mapping
from typing import Any

from kd.components.signatures import check_call
from kd.composition.engines import wrapped
from kd.composition.interfaces import made_by
from kd.generators.external_engine import ExternalEngine
from kd.models.sharding import Sharding
from kd.training.sharding import NAME

Node = Mapping[str, Any]


def check_sharding(config: Node) -> None:
    """Raises ValueError for settings of `trainer.sharding`, and parts of the run, that sharded models cannot have."""
    trainer = config["trainer"]
    if trainer.get("strategy") != NAME:
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
                f"{path}.generator writes the student's weights for another engine, and trainer.strategy={NAME} leaves "
                "each rank a part of them; take generator=torch, or trainer=ddp"
            )


def _check_teacher(teacher: Node) -> None:
    """Refuse members that read some records each: ranks would wait for one that reads nothing."""
    if teacher.get("combine") == "routed":
        raise ValueError(
            f"teacher.combine=routed has each record read by one member, but trainer.strategy={NAME} shards every "
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
