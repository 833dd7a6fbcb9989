"""Hydra's `instantiate` for the code that a config may name, with a constructor's own error messages."""

from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import ListConfig, OmegaConf

from kd.components.signatures import joined, located


def calls(path: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node of plain containers that has a `_target_`, and its path."""
    if isinstance(value, Mapping):
        if value.get("_target_") is not None:
            yield path, value
        for key, child in value.items():
            yield from calls(joined(path, str(key)), child)
    elif isinstance(value, list | ListConfig):
        for i, child in enumerate(value):
            yield from calls(f"{path}[{i}]", child)


def check_code(path: str, node: Any) -> None:
    """Raises ValueError, before any of it is called, for a `_target_` in `node` that a config may not name."""
    for place, call in calls(path, node):
        located(place, call["_target_"])


def instantiate(node: Any, **settings: Any) -> Any:
    """The object that the node describes, as `hydra.utils.instantiate` makes it.

    Raises:
        ValueError: a `_target_` that a config may not name, or what a constructor refuses, after the node's path.
    """
    path = str(node._get_full_key(None)) if OmegaConf.is_config(node) else ""
    check_code(path, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    try:
        return hydra.utils.instantiate(node, **settings)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError):
            place = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else path
            text = str(cause).rstrip(".")
            raise ValueError(f"{place}: {text}" if place and place not in text else text) from cause
        raise cause or error from None
