"""The engine that writes, against those for whom it would: rollouts, and stages of the augmentation."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from kd.composition.signatures import located
from kd.generators.elsewhere import Elsewhere
from kd.generators.torch import Torch
from kd.generators.transformers import Transformers

Node = Mapping[str, Any]
ASKED = ("max_new_tokens", "temperature", "top_p", "samples")  # what an engine is told by whom it writes for


def check_generator(config: Node) -> None:
    """An engine of its own writes where one model writes alone: somebody takes it, and asks for what it would write.

    Raises ValueError if not.
    """
    generator = located("generator", config["generator"]["_target_"])
    writers = dict(_writers(config))
    for path, node in writers.items():
        _check_writer(path, node)
    if generator is Torch or any(node["generator"] == config["generator"] for node in writers.values()):
        return
    rollout = located("rollout", config["rollout"]["_target_"])
    reason = (
        "has nothing written"
        if getattr(rollout, "keeps_responses", False)
        else "has student and teacher choose each token together"
    )
    raise ValueError(
        f"generator {generator.__qualname__} writes for one model alone, but rollout {rollout.__qualname__} {reason}; "
        "take generator=torch, or rollout=on_policy"
    )


def _writers(config: Node) -> Iterator[tuple[str, Node]]:
    """Who is given an engine, and where."""
    rollout = config["rollout"]
    nodes = {"rollout": rollout, "rollout.writer": rollout.get("writer")}
    nodes |= {f"augmentation.stages.{i}": stage for i, stage in enumerate(config["augmentation"]["stages"])}
    for path, node in nodes.items():
        if isinstance(node, Mapping) and isinstance(node.get("generator"), Mapping):
            yield path, node


def _check_writer(path: str, node: Node) -> None:
    generator: Any = located(f"{path}.generator", node["generator"]["_target_"])
    if path.startswith("augmentation") and isinstance(generator, type) and issubclass(generator, Elsewhere):
        raise ValueError(
            f"generator {generator.__qualname__} would be given the teacher's weights for {path}, and then the "
            f"student's; set {path}.generator=null, so that our own engine writes there"
        )
    if generator is not Transformers:
        return
    parameters = inspect.signature(located(path, node["_target_"])).parameters
    asked = {name: node.get(name, parameters[name].default) for name in ASKED}
    try:
        Transformers(options=node["generator"]["options"]).check(**asked)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
