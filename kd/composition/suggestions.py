"""Suggestions for a misspelt key of the command line."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from kd.components.choices import folders
from kd.components.synonyms import KEYS, NOTES


def flattened(node: Any, path: str = "") -> dict[str, Any]:
    """Every node of plain or OmegaConf containers by its dotted path, interpolations as they are written."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    below = {path: node} if path else {}
    if isinstance(node, Mapping):
        for key, value in node.items():
            below |= flattened(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            below |= flattened(value, f"{path}[{i}]")
    return below


class NoSuchKey(ValueError):
    """A key that the config does not have; `likeness` is that of the nearest key there, from 0 to 1."""

    def __init__(self, override: Override, key: str, known: Mapping[str, Any]) -> None:
        super().__init__(no_key(override, key, known))
        self.likeness = SequenceMatcher(None, key, nearest(key, list(known)) or "").ratio()


def no_key(override: Override, key: str, known: Mapping[str, Any]) -> str:
    """The sentence for a key that the config does not have, with the key that it may be.

    known: every key of the config, whole paths, with its value.
    """
    line = (override.input_line or "").lstrip("~")
    parent = key
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    above = known.get(parent)
    if parent and (sentence := _inside_of_no_mapping(line, key, parent, above)):
        return sentence
    if key.startswith("trainer.") and (where := _elsewhere(key.removeprefix("trainer."))):
        return f"{line}: another key sets this; set {where}"
    if near := _synonym(key, known):
        return f"{line}: the config has no {key}; did you mean {near}"
    others = [path for path in known if not key.startswith(f"{path}.")]
    if near := nearest(key, [*others, *(_groups() - known.keys())]):
        return f"{line}: the config has no {key}; did you mean {near}?"
    inside = [name for name in known if name.rpartition(".")[0] == parent]
    there = f"{parent or 'the top level'} has {', '.join(name.rpartition('.')[2] for name in inside) or 'no keys'}"
    return f"{line}: the config has no {key}; {there}" + (f" (+{line} would add it)" if parent else "")


def _inside_of_no_mapping(line: str, key: str, parent: str, above: Any) -> str | None:
    if isinstance(above, str) and "${" in above:
        other = f"{_absolute(above.strip('${}'), parent)}{key.removeprefix(parent)}"
        return f"{line}: {parent} is {above}; set {other}, or {parent} as a whole"
    return f"{line}: {parent} is null, so there is no {key}; write +{line} to add it" if above is None else None


def _absolute(name: str, path: str) -> str:
    """The key that an interpolation at `path` names, which may count its leading dots from there."""
    plain = name.lstrip(".")
    up = len(name) - len(plain)
    return ".".join([*path.split(".")[:-up], plain]) if up else name


def _synonym(key: str, known: Mapping[str, Any]) -> str | None:
    """The key that other libraries call `key`, as the end of a question."""
    first, _, rest = key.partition(".")
    name = key.rpartition(".")[2].lower()
    near = KEYS.get(name)
    if (
        near is None
        or (rest and first in known)
        or (near not in known and near.partition(".")[0] not in {*known, *_groups()})
    ):
        return None
    note = f" ({NOTES[name]})" if name in NOTES else ""
    return f"{near}?{note}"


def _groups() -> set[str]:
    return {path.name for place in folders() for path in place.iterdir() if path.is_dir()}


def _elsewhere(argument: str) -> str | None:
    from kd.composition.sections import ELSEWHERE  # lazy: Lightning takes seconds

    return ELSEWHERE.get(argument)


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The same name at another path, else the most similar path, else the path with the most similar name."""
    last = key.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    if same:
        return max(same, key=lambda path: SequenceMatcher(None, key, path).ratio())
    if near := get_close_matches(key, known, n=1, cutoff=0.75):
        return near[0]
    lasts = get_close_matches(last, [path.rpartition(".")[2] for path in known], n=1, cutoff=0.7)
    return next((path for path in known if lasts and path.rpartition(".")[2] == lasts[0]), None)
