"""Checks of the number, the order and the repetition of a prompt's responses against the terms that rely on them."""

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

from kd.components.choices import choices
from kd.components.signatures import joined, located
from kd.composition.interfaces import made_by
from kd.composition.lacks import Lack
from kd.signals import hook

Node = Mapping[str, Any]


def check_groups(name: str, node: Node, loss: Any, rollout: Node) -> None:
    """Raises ValueError where the term `name` compares responses that the rollout does not provide, or not in order.

    node: the settings of its loss. loss: the function that takes the signals.
    """
    found = located("rollout", rollout["_target_"])
    if hook(loss, "in_order") and not _ordered("rollout", rollout):
        raise Lack(
            f"{name} takes the first response to a prompt for the preferred one, but rollout {found.__qualname__} "
            "gives them in the order in which they were generated",
            ways(),
        )
    size, check = responses_each("rollout", rollout), group_check(node, loss)
    if size is None and _writes(rollout):  # at some steps given responses, at others those of the wrapped rollout
        size = responses_each("rollout.writer", rollout["writer"])
    if check is None or size is None:
        return
    try:
        check(size)
    except ValueError as error:
        fact = str(error).partition("; ")[0]  # its remedy does not fit every run
        raise Lack(f"{name}, of what rollout {found.__qualname__} gives: {fact}", ways()) from None


def ways() -> dict[str, list[str]]:
    """The ways out: the rollout determines the number and the order of responses."""
    return {"rollout": choices("rollout")}


def group_check(node: Node, loss: Any) -> partial[None] | None:
    """The check of the number of a prompt's responses under the settings `node` of a loss; None if any number fits."""
    if (check := hook(loss, "check_group")) is None:
        return None
    defaults = {key: parameter.default for key, parameter in signature(loss).parameters.items()}
    named = {key: node.get(key, defaults[key]) for key in signature(check).parameters if key in defaults}
    named.pop("group_size", None)
    return partial(check, **named)


def passes_given(path: str, node: Node) -> bool:
    """Return whether the student ever learns on the records' own responses, and on nothing beside them."""
    written = _writes(node) and passes_given(joined(path, "writer"), node["writer"])
    return made_by(path, node).passes_given(node, written)


def reads_given(path: str, node: Node) -> bool:
    """Return whether the rollout ever reads the records' own responses, so that a prompt alone is no record for it."""
    written = _writes(node) and reads_given(joined(path, "writer"), node["writer"])
    return made_by(path, node).reads_given(node, written)


def check_margins(path: str, rollout: Node, reward: Node) -> None:
    """Raises ValueError where a rollout, or one that it wraps, keeps pairs of which there can be none."""
    found = None if reward.get("_target_") is None else made_by("reward", reward)
    largest, margin = None if found is None else found.largest_difference, rollout.get("margin", 0.0)
    if found is not None and largest is not None and margin >= largest:
        raise ValueError(
            f"{path}.margin={margin}: two rewards of {found.__qualname__} differ by {largest:g} at most, so that no "
            f"pair would ever be kept; set {path}.margin below {largest:g}"
        )
    if _writes(rollout):
        check_margins(joined(path, "writer"), rollout["writer"], reward)


def check_windows(name: str, loss: Any, rollout: Node) -> None:
    """Raises ValueError where the term `name` keeps its scores of a window, and the rollout mixes windows."""
    for key in ("capacity", "max_age"):
        if hook(loss, "whole_windows") and rollout.get(key) is not None:
            raise ValueError(
                f"rollout.{key}={rollout[key]}: {name} scores each window by its head as it was when the window was "
                f"generated, so all of a window's uses come one after the other; set rollout.{key}=null"
            )


def _ordered(path: str, node: Node) -> bool:
    """Return whether responses are in order, by the outermost rollout that determines it."""
    decides = made_by(path, node).ordered
    if decides is not None:
        return decides
    return _ordered(joined(path, "writer"), node["writer"]) if _writes(node) else True


def responses_each(path: str, node: Node) -> int | None:
    """The number of responses that a prompt has under a rollout; None: as many as the records have, or not always the
    same."""
    written = responses_each(joined(path, "writer"), node["writer"]) if _writes(node) else None
    return made_by(path, node).responses_each(node, written)


def _writes(node: Node) -> bool:
    """Return whether it wraps another rollout, which generates."""
    return isinstance(node.get("writer"), Mapping) and node["writer"].get("_target_") is not None
