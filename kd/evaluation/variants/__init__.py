"""Variants of the evaluated records, by the files of `conf/variant` or functions of one's own: a typo, another order.

A variant is a function `(record, seed)`, or `(record, seed, skill)`, that returns the changed record, whose right
answer is known, or None where it cannot change this one; what follows a `*` is set in yaml. The id stays, so that each
item is paired with itself.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.components.choices import choices, content, file_of
from kd.components.signatures import check_call, located, suggestion
from kd.types import Record, Skill

GROUP = "variant"
GIVEN = ("record", "seed", "skill")


@dataclass(frozen=True)
class Variant:
    """One way to change a record. `takes_skill`: whether its function is given the record's skill, too."""

    name: str
    function: Callable[..., Record | None]
    arguments: Mapping[str, Any]
    takes_skill: bool

    def __call__(self, record: Record, seed: int, skill: Skill) -> Record | None:
        """The changed record; None where nothing of it changes.

        skill: a mixture's is asked of the part that the record is of.

        Raises:
            ValueError: the function returned what is no record of the same id and skill.
        """
        own = skill.parts.get(record.skill, skill)
        found = self.function(record, seed, *([own] if self.takes_skill else []), **self.arguments)
        if found is None or found == record:
            return None
        if not isinstance(found, Record) or (found.id, found.skill) != (record.id, record.skill):
            made = f"the record {found.id}" if isinstance(found, Record) else f"a {type(found).__name__}"
            raise ValueError(
                f"variant {self.name} made {made} of the record {record.id} of {record.skill}; it returns a record of "
                "the same id and skill, or None"
            )
        return found


def variants(names: Sequence[str | Mapping[str, Any]]) -> tuple[Variant, ...]:
    """The variants of `evaluation.variants`, in its order.

    names: files of `conf/variant`, or of `variant/` in a folder of `--config-dir`; or mappings with a `_target_` and a
        name, what such a file holds.

    Raises:
        ValueError: there is no such variant, one is named twice, or a config may not name its function.
    """
    found = tuple(map(_variant, names))
    listed = [one.name for one in found]
    if twice := next((name for name in listed if listed.count(name) > 1), None):
        raise ValueError(f"evaluation.variants names {twice} twice; name it once, or give one of them another `name`")
    return found


def _variant(entry: str | Mapping[str, Any]) -> Variant:
    if isinstance(entry, str) and not file_of(GROUP, entry).exists():
        raise ValueError(f"evaluation.variants: conf/{GROUP} has no {entry}.yaml; {suggestion(entry, choices(GROUP))}")
    path = f"{GROUP}={entry}" if isinstance(entry, str) else "evaluation.variants"
    node = dict(content(GROUP, entry) if isinstance(entry, str) else entry)
    function = located(path, node.pop("_target_", None))
    node.pop("_partial_", None)
    name = str(node.pop("name", None) or (entry if isinstance(entry, str) else function.__name__))
    check_call(path, {**node, "_partial_": True}, function)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = tuple(key for key, one in inspect.signature(function).parameters.items() if one.kind in positional)
    if taken not in (GIVEN[:2], GIVEN):
        raise ValueError(f"{path}: a variant takes (record, seed) or (record, seed, skill), and its function {taken}")
    return Variant(name, function, node, takes_skill=taken == GIVEN)
