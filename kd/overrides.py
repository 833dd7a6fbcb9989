"""The command line, read before Hydra reads it: a misspelt key or choice is answered with the nearest one.

What is known is taken from the files of `conf/` and from the config that the chosen ones compose.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).parents[1] / "conf"

Names = tuple[str, ...]  # what is chosen of one group: one file, or several as in objective=[fkl,sft]


@dataclass(frozen=True)
class Choice:
    """What may become of one group: one of `alternatives`, as the command line or a file (`source`) says."""

    source: str
    alternatives: Sequence[Names]


def choices(group: str, conf: Path = CONF) -> list[str]:
    """Names of the files of a group."""
    folder = conf / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


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


def check_overrides(arguments: Sequence[str], conf: Path = CONF) -> None:
    """Whether the overrides of a command line name what there is. Flags and `hydra.*` are left to Hydra.

    Raises ValueError, in one sentence: a choice without a file, a key that is not in the config, two files that choose
    the same axis, a method and a choice that contradicts it.
    """
    if not (conf / "config.yaml").exists():
        raise ValueError(f"there is no {conf / 'config.yaml'}; run from a clone, installed with pip install -e")
    flags = get_args_parser().parse_known_args(list(arguments))[0]
    if not flags.overrides or flags.config_dir or flags.config_path:  # whoever brings a conf of their own knows it
        return
    with initialize_config_dir(version_base="1.3", config_dir=str(conf.absolute())):
        given = [override for override in map(_parsed, flags.overrides) if not _of_hydra(override)]
        groups = [override for override in given if _is_group(override, conf)]
        for override in groups:
            _check_choice(override, conf)
        _check_owners({o.key_or_group: Choice("the command line", alternatives(o, conf)) for o in _plain(groups)}, conf)
        keys = [override for override in given if not _is_group(override, conf)]
        for lines in _compositions(groups, keys):
            _check_keys(_composed(flags.config_name or "config", lines), keys, conf)


def _parsed(line: str) -> Override:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        return parser.parse_override(line)
    except (OverrideParseException, HydraException) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise ValueError(
            f"{line}: Hydra cannot read this ({reason}); an override is key=value, "
            "with quotes around a value that holds spaces, commas, brackets or colons"
        ) from None


def _of_hydra(override: Override) -> bool:
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _is_group(override: Override, conf: Path) -> bool:
    return (conf / override.key_or_group).is_dir() and not isinstance(override.value(), dict)


def _plain(groups: Sequence[Override]) -> Iterator[Override]:
    """Those that choose what stands at the group's own place."""
    return (override for override in groups if not override.is_delete() and override.package is None)


# ---- choices ---------------------------------------------------------------------------------------------------------


def alternatives(override: Override, conf: Path) -> list[Names]:
    """What an override of a group may choose: several alternatives if it is swept."""
    if override.is_discrete_sweep():
        return [_names(value) for value in override.sweep_iterator()]
    return [] if override.is_sweep_override() else [_names(override._value)]


def _names(value: Any) -> Names:
    if isinstance(value, list):
        return tuple(name for item in value for name in _names(item))
    if value is None or value == "null":
        return ()
    return (value.text if isinstance(value, QuotedString) else str(value),)


def _check_choice(override: Override, conf: Path) -> None:
    group = override.key_or_group
    known = choices(group, conf)
    found = [] if override.is_delete() else alternatives(override, conf)
    if override.is_sweep_override() and not found:
        raise ValueError(f"{override.input_line}: nothing in conf/{group} matches; choose from {', '.join(known)}")
    for name in (name for names in found for name in names):
        if name.removesuffix(".yaml") not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.4)
            question = f"did you mean {near[0]}? " if near else ""
            listed = ", ".join(known) or "none yet"
            raise ValueError(f"{group}={name}: conf/{group} has no {name}.yaml; {question}(choices: {listed})")


# ---- one axis, one owner ---------------------------------------------------------------------------------------------


def _check_owners(chosen: Mapping[str, Choice], conf: Path) -> None:
    """Raises ValueError if two files choose the same axis, or if a method's axis is chosen otherwise beside it.

    Hydra would silently keep one of the two, and a table would call by a method's name what is another.
    """
    chosen = {**_swept_by_files(chosen, conf), **chosen}
    choosing = [
        [[(group, name) for name in names] for names in choice.alternatives]
        for group, choice in chosen.items()
        if any(axes(group, name, conf) for names in choice.alternatives for name in names)
    ]
    for job in product(*choosing):
        _check_job([file for files in job for file in files], chosen, conf)


def axes(group: str, name: str, conf: Path) -> dict[str, Names]:
    """The groups that a file chooses for others with `override /group: choice`, and what it chooses."""
    path = conf / group / f"{name}.yaml"
    entries = (OmegaConf.load(path).get("defaults") or []) if path.exists() else []
    pairs = [pair for entry in entries if OmegaConf.is_dict(entry) for pair in entry.items()]
    return {
        key.removeprefix("override ").strip().lstrip("/"): _names(OmegaConf.to_object(value) if _many(value) else value)
        for key, value in pairs
        if key.startswith("override ")
    }


def _many(value: Any) -> bool:
    return OmegaConf.is_list(value)


def _swept_by_files(chosen: Mapping[str, Choice], conf: Path) -> dict[str, Choice]:
    """What the chosen files put on the axes of a sweep with `hydra.sweeper.params`."""
    swept = {}
    files = [(group, name) for group, choice in chosen.items() for names in choice.alternatives for name in names]
    for group, name in files:
        path = conf / group / f"{name}.yaml"
        parameters = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") if path.exists() else None
        for key, value in (parameters or {}).items():
            override = _parsed(f"{key}={value}")
            if _is_group(override, conf):
                _check_choice(override, conf)
                swept[key] = Choice(f"{group}={name}", alternatives(override, conf))
    return swept


def _check_job(files: list[tuple[str, str]], chosen: Mapping[str, Choice], conf: Path) -> None:
    owners: dict[str, tuple[str, Names]] = {}
    files = list(files)
    while files:
        group, name = files.pop(0)
        for axis, names in axes(group, name, conf).items():
            if axis in owners:
                other, theirs = owners[axis]
                raise ValueError(
                    f"{other} and {group}={name} both choose {axis} ({_told(theirs)} and {_told(names)}); "
                    f"drop one of the two, or take the line of {axis} out of one file's defaults"
                )
            owners[axis] = f"{group}={name}", names
            if axis not in chosen:
                files += [(axis, name) for name in names]
    for axis, (owner, names) in owners.items():
        if owner.startswith("method=") and axis in chosen:
            _check_method(owner, axis, names, chosen[axis])


def _check_method(method: str, axis: str, names: Names, choice: Choice) -> None:
    for other in choice.alternatives:
        if other != names:
            raise ValueError(
                f"{method} means {axis}={_told(names)}, but {choice.source} says {axis}={_told(other)}, "
                f"so the results would bear a wrong name; drop {method} or {axis}={_told(other)}"
            )


def _told(names: Names) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]" if names else "null"


# ---- keys ------------------------------------------------------------------------------------------------------------


def _compositions(groups: Sequence[Override], keys: Sequence[Override]) -> Iterator[list[str]]:
    """What to compose: the first choice of each sweep, then the others, one sweep at a time, where keys depend on it."""
    lines = [_lines(override) for override in groups]
    first = [options[0] for options in lines]
    yield first
    for i, override in enumerate(groups):
        group = override.key_or_group
        everywhere = group in ("method", "experiment")  # what they set may be anywhere
        if any(everywhere or key.key_or_group.startswith(f"{group}.") for key in keys):
            for line in lines[i][1:]:
                yield [*first[:i], line, *first[i + 1 :]]


def _lines(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [override.input_line or ""]


def _composed(config_name: str, lines: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(lines))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise ValueError(f"{' '.join(lines) or config_name} cannot be composed: {reason}") from None


def _check_keys(cfg: DictConfig, keys: Sequence[Override], conf: Path) -> None:
    for override in keys:
        value = override.value()
        known = flattened(cfg)
        key = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", override.key_or_group)
        if override.is_add() and known.get(key) is not None and not isinstance(value, dict | list):
            raise ValueError(f"{override.input_line}: {key} is in the config already; leave the + out to change it")
        if not (override.is_add() or override.is_force_add()):
            for missing in _missing(key, value, known):
                raise ValueError(_no_key(override, missing, known, conf))
        if not (override.is_delete() or override.is_sweep_override()):  # a later override may build on this one
            OmegaConf.update(cfg, override.key_or_group, value, merge=True, force_add=True)


def _missing(key: str, value: Any, known: Mapping[str, Any]) -> Iterator[str]:
    """The key itself, or those in a mapping that is merged into the one there."""
    if key not in known:
        yield key
    elif isinstance(value, dict) and isinstance(known[key], dict) and known[key]:
        for inner, deeper in value.items():
            yield from _missing(f"{key}.{inner}", deeper, known)


def _no_key(override: Override, key: str, known: Mapping[str, Any], conf: Path) -> str:
    line = (override.input_line or "").lstrip("~")
    parent = key
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    above = known.get(parent)
    if isinstance(above, str) and "${" in above:
        return (
            f"{line}: {parent} is {above}; set {above.strip('${}')}{key.removeprefix(parent)}, or {parent} as a whole"
        )
    if parent and above is None:
        return f"{line}: {parent} is null, so there is no {key}; write +{line} to add it"
    if near := _nearest(key, [*known, *(path.name for path in conf.iterdir() if path.is_dir())]):
        return f"{line}: the config has no {key}; did you mean {near}?"
    inside = [name for name in known if name.rpartition(".")[0] == parent]
    there = f"{parent or 'the top level'} has {', '.join(name.rpartition('.')[2] for name in inside) or 'no keys'}"
    return f"{line}: the config has no {key}; {there} (+{line} would add it)"


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The same name elsewhere, else the path that reads most like it, else a name that reads like it elsewhere."""
    last = key.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    if same:
        return max(same, key=lambda path: SequenceMatcher(None, key, path).ratio())
    if near := get_close_matches(key, known, n=1, cutoff=0.75):
        return near[0]
    lasts = get_close_matches(last, [path.rpartition(".")[2] for path in known], n=1, cutoff=0.7)
    return next((path for path in known if lasts and path.rpartition(".")[2] == lasts[0]), None)
