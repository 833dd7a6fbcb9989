"""Checks of the generation engine against its users: rollouts, stages of the augmentation, and the evaluation."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from kd.components.instantiation import instantiate
from kd.components.signatures import located
from kd.composition.interfaces import made_by
from kd.generators.settings import Decoding

Node = Mapping[str, Any]
EVALUATION = "evaluation"
DECODING = tuple(field.name for field in fields(Decoding))  # settings that an engine takes from its user


def check_generator(config: Node) -> None:
    """Raises ValueError where no part of the run generates with the engine, or one needs a decoding that it lacks."""
    generator = made_by("generator", config["generator"])
    writers = dict(_writers(config))
    for path, node in writers.items():
        _check_writer(path, node)
        if path != EVALUATION:  # which measures no teacher without weights
            _check_weights(path, node, config["teacher"])
    if generator.is_default or any(node["generator"] == config["generator"] for node in writers.values()):
        return
    rollout = made_by("rollout", config["rollout"])
    takes = any("generator" in inspect.signature(located(at, n["_target_"])).parameters for at, n in wrapped(config))
    reason = "chooses each token with student and teacher together"
    if takes or rollout.keeps_responses:
        reason = "generates nothing with it" if takes else "generates nothing"
    raise ValueError(
        f"generator {generator.__qualname__} generates for one model alone, but rollout {rollout.__qualname__} "
        f"{reason}; take generator=torch, or rollout=on_policy"
    )


def _writers(config: Node) -> Iterator[tuple[str, Node]]:
    """The parts of the config that have an engine, by path."""
    stages = ((f"augmentation.stages.{name}", stage) for name, stage in config["augmentation"]["stages"].items())
    for path, node in (*wrapped(config), *stages, (EVALUATION, config["evaluation"])):
        if isinstance(node.get("generator"), Mapping):
            yield path, node


def wrapped(config: Node) -> Iterator[tuple[str, Node]]:
    """The rollout, the one that it wraps, and so on, by path."""
    path, node = "rollout", config["rollout"]
    while isinstance(node, Mapping) and node.get("_target_") is not None:
        yield path, node
        path, node = f"{path}.writer", node.get("writer")


def _check_weights(path: str, node: Node, teacher: Node) -> None:
    """Refuses an external engine for a teacher that provides text alone and has no weights here."""
    if teacher.get("_target_") is None or "teacher" not in made_by(path, node).requires:
        return
    generator, found = made_by(f"{path}.generator", node["generator"]), made_by("teacher", teacher)
    if not generator.is_default and not found.has_weights:
        raise ValueError(
            f"generator {generator.__qualname__} generates with a teacher's weights, but teacher {found.__qualname__} "
            f"gives text alone; set {path}.generator=null"
        )


def _check_writer(path: str, node: Node) -> None:
    generator = made_by(f"{path}.generator", node["generator"])
    if path.startswith("augmentation") and generator.holds_weights:
        raise ValueError(
            f"generator {generator.__qualname__} would be given the teacher's weights for {path}, and then the "
            f"student's; set {path}.generator=null, so that our own engine generates there"
        )
    if path == EVALUATION and generator.holds_weights and node["generator"].get("staleness", 0) is None:
        raise ValueError(
            f"{path}.generator.staleness=null never transfers weights, but an evaluation measures several models; set "
            f"generator.staleness=0, or {path}.generator=null, so that our own engine generates there"
        )
    if generator.is_default or generator.holds_weights:
        return
    parameters = inspect.signature(located(path, node["_target_"])).parameters
    found = {name: node.get(name, parameters[name].default) for name in DECODING if name in parameters}
    try:
        instantiate(OmegaConf.create({"generator": node["generator"]}).generator).check(Decoding(**found))
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; or set {path}.generator=null, so that our own engine generates there"
        ) from None
