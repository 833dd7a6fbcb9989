"""The members that a component of each group has: a class that lacks one is refused before anything is made."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, ClassVar, get_origin

from kd.alignment import Alignment
from kd.augmentation import Stage
from kd.components.instantiation import calls
from kd.components.signatures import located
from kd.corpora import Corpus
from kd.environments.interface import Environment
from kd.generators import Generator
from kd.rewards import Reward
from kd.rollouts import Rollout
from kd.teachers.interface import Teacher
from kd.types import Skill

Node = Mapping[str, Any]

INTERFACES: Mapping[str, type] = {  # by the pattern of the places where a component of the group stands
    r"(judge\.[\w-]+\.)?teacher(\.members\.\w+)?": Teacher,
    r"rollout(\.writer)*": Rollout,
    r"rollout(\.writer)*\.environment": Environment,
    r"(.+\.)?generator": Generator,
    r"reward": Reward,
    r"alignment": Alignment,
    r"corpus": Corpus,
    r"skill": Skill,
    r"augmentation\.stages\.[\w-]+": Stage,
}


def made_by(path: str, node: Node) -> Any:
    """The class that the node's `_target_` names, or the one that the function there returns, which has all members.

    Raises ValueError for a function that does not declare one, and, in one sentence that names class and member, for a
    class that lacks one of its group.
    """
    found: Any = located(path, node["_target_"])
    if not isinstance(found, type):
        found = inspect.signature(found).return_annotation
    if not isinstance(found, type):
        raise ValueError(
            f"{path}._target_={node['_target_']} is a function without the class that it returns; annotate its result"
        )
    _check_members(path, found)
    return found


def check_interfaces(config: Node) -> None:
    """Raises ValueError for a component of a resolved config that lacks a member of its group."""
    for path, node in calls("", config):
        if interface_of(path) is not object:
            made_by(path, node)


def interface_of(path: str) -> type:
    """The interface of the component at a path of the config; `object` where there is none."""
    return next((kind for place, kind in INTERFACES.items() if re.fullmatch(place, path)), object)


def _check_members(path: str, found: type) -> None:
    interface = interface_of(path)
    if missing := lacking(found, interface):
        base = f"{interface.__module__}.{interface.__qualname__}"
        remedy = "define it" if interface in found.__mro__ else f"inherit {base}, or define it"
        raise ValueError(f"{path}: {found.__module__}.{found.__qualname__} has no {' and no '.join(missing)}; {remedy}")


def lacking(found: type, interface: Any) -> list[str]:
    """The members of an interface that a class neither has nor inherits, in the order of their names."""
    kinds = [kind for kind in found.__mro__ if kind is not interface]
    declared = {name for kind in kinds for name in vars(kind).get("__annotations__", ())}
    own = {name for name in members(interface) if name in declared or _has(found, name)}
    return sorted(members(interface) - own)


def members(interface: Any) -> frozenset[str]:
    """The public members of an interface that a class has, and `__call__` where it has one; not what instances set."""
    if interface is object:
        return frozenset()
    hints = vars(interface).get("__annotations__", {})
    named = {*vars(interface), *(name for name, hint in hints.items() if get_origin(hint) is ClassVar)}
    return frozenset(name for name in named if not name.startswith("_") or name == "__call__")


def _has(found: type, name: str) -> bool:
    """True if a class, or one that it inherits, has a member that is not abstract."""
    abstract = vars(found).get("__abstractmethods__", ())
    return name not in abstract and any(name in vars(kind) for kind in found.__mro__)
