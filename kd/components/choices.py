"""The files of `conf/` that a command line chooses, one or several of each group, and their own choices."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import kd
from kd.components.axes import AXES, check_several


def conf_folder() -> Path:
    """The project's yamls: `conf/`, inside the installed package or, in a clone, beside it."""
    package = Path(kd.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


CONF = conf_folder()
SEARCHED, ARMS, MODE = "hydra.searchpath", "hydra.sweeper.arms", "hydra.mode"
OF_HYDRA = ("hydra", "schema")  # entries of the search path that are not the user's

Names = tuple[str, ...]  # what is chosen of one group: one file, or several as in objective=[fkl,sft]
File = tuple[str, str]  # group and name


@dataclass(frozen=True)
class Choice:
    """The choice for one group: one of `alternatives`. `source` is the override or file that makes it."""

    source: str
    alternatives: Sequence[Names]


def folders() -> tuple[Path, ...]:
    """The config folders that Hydra was started with, in its order; CONF alone before it was started.

    The project's, that of `--config-dir`, those of `hydra.searchpath`.
    """
    if not GlobalHydra.instance().is_initialized():
        return (CONF,)
    entries = GlobalHydra.instance().config_loader().get_search_path().get_path()
    paths = [*(entry.path for entry in entries if entry.provider not in OF_HYDRA), *_of_job()]
    return tuple(dict.fromkeys(place for path in paths if (place := folder_at(path)))) or (CONF,)


def _of_job() -> list[str]:
    """The entries of `hydra.searchpath`, which Hydra keeps beside its search path once a job has begun."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [f"{source.schema}://{source.path}" for source in sources if source.provider.startswith(SEARCHED)]


def folder_at(path: str) -> Path | None:
    """The folder of an entry of Hydra's search path: PATH, file://PATH or pkg://PACKAGE. None where there is none."""
    scheme, _, place = path.rpartition("://")
    if scheme == "pkg":
        try:
            spec = find_spec(place.strip("/").replace("/", "."))
        except ImportError:
            return None
        return next(map(Path, (spec and spec.submodule_search_locations) or ()), None)
    return Path(place) if scheme in ("", "file") else None


def choices(group: str, conf: Path | None = None) -> list[str]:
    """Names of the files of a group, in `conf` or in all `folders`."""
    places = [place / group for place in ((conf,) if conf else folders())]
    return sorted({path.relative_to(at).with_suffix("").as_posix() for at in places for path in at.rglob("*.yaml")})


def file_of(group: str, name: str, conf: Path | None = None) -> Path:
    """The yaml of a choice: the first there is, as Hydra takes it."""
    paths = [place / group / f"{name.removesuffix('.yaml')}.yaml" for place in ((conf,) if conf else folders())]
    return next((path for path in paths if path.exists()), paths[0])


def content(group: str, name: str) -> Any:
    """A file of `group` after those that stand under its `defaults`, each at its place; interpolations as written."""
    return _merged(group, file_of(group, name))


@cache
def _merged(group: str, file: Path) -> Any:
    own: Any = OmegaConf.load(file)
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str)]
    if "_self_" not in bases:
        bases.append("_self_")  # as Hydra has it
    return OmegaConf.to_container(
        OmegaConf.merge(*(own if base == "_self_" else _placed(group, base) for base in bases))
    )


def _placed(group: str, base: str) -> Any:
    name, _, place = base.partition("@")
    node = content(group, name)
    for key in reversed(place.split(".") if place else []):
        node = {key: node}
    return OmegaConf.create(node)


def parsed(line: str) -> Override:
    """An override as Hydra reads it. Raises ValueError where Hydra cannot."""
    try:
        return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([line])[0]
    except HydraException as error:
        reason = next(text for text in str(error).splitlines() if not text.startswith("Error parsing override"))
        raise ValueError(
            f"{line}: Hydra cannot read this ({reason}); an override is key=value, "
            "with quotes around a value that holds spaces, commas, brackets, colons or ~, as in 'key=\"~/a b\"'"
        ) from None


def is_group(override: Override) -> bool:
    """Return whether the override chooses files, rather than sets a value."""
    there = any((place / override.key_or_group).is_dir() for place in folders())
    return there and not isinstance(override.value(), dict)


def alternatives(override: Override) -> list[Names]:
    """The choices of an override of a group: several alternatives if it is swept."""
    if override.is_discrete_sweep():
        return [_names(value) for value in override.sweep_iterator()]
    return [] if override.is_sweep_override() or override.is_delete() else [_names(override.value())]


def _names(value: Any) -> Names:
    if isinstance(value, list) or OmegaConf.is_list(value):
        return tuple(name for item in value for name in _names(item))
    return (value.text if isinstance(value, QuotedString) else str(value),)


def check_choice(override: Override) -> None:
    """Raises ValueError, with the nearest choice and all of them, if the group has no such file."""
    group = override.key_or_group
    known = choices(group)
    listed = ", ".join(known) or "none yet"
    if override.value() is None and not override.is_delete():
        raise ValueError(f"{override.input_line}: a group cannot be null; write ~{group}, or choose from {listed}")
    found = alternatives(override)
    if override.is_sweep_override() and not found:
        raise ValueError(f"{override.input_line}: nothing in conf/{group} matches; choose from {listed}")
    for names in found:
        check_several(group, names)
    for name in (name for names in found for name in names):
        if name.removesuffix(".yaml") not in known:
            near = meant(group, name, known)
            question = f"did you mean {near}? " if near else ""
            raise ValueError(f"{group}={name}: conf/{group} has no {name}.yaml; {question}choices: {listed}")


def meant(group: str, name: str, known: Sequence[str]) -> str | None:
    """The choice that `name` means: in other letters, under another library's name, or in much the same letters."""
    plain = name.lower().replace("-", "_")
    other = AXES[group].synonyms.get(plain) if group in AXES else None
    for found in known:
        if found.replace("_", "") == plain.replace("_", ""):
            return found
    return other if other in known else next(iter(get_close_matches(plain, known, n=1, cutoff=0.4)), None)


def sweeps_of(chosen: Mapping[str, Choice]) -> Iterator[tuple[str, Override]]:
    """Each parameter that the chosen files sweep over with `hydra.sweeper.params`, after its file."""
    for group, choice in chosen.items():
        for name in dict.fromkeys(name for names in choice.alternatives for name in names):
            parameters = OmegaConf.select(_content(group, name), "hydra.sweeper.params") or {}
            for key, value in parameters.items():
                yield f"{group}={name}", parsed(f"{key}={value}")


def set_by(key: str, chosen: Mapping[str, Choice]) -> list[Any]:
    """The values that the chosen files themselves have at `key`."""
    files = [(group, name) for group, choice in chosen.items() for names in choice.alternatives for name in names]
    found = [OmegaConf.select(_content(group, name), key) for group, name in files]
    return [value for value in found if value is not None]


def arms_of(typed: Any, chosen: Mapping[str, Choice]) -> list[list[str]]:
    """The overrides of each arm of a grid: those that are `typed`, else the chosen files'; one empty arm for none.

    Raises ValueError for arms that are no list, and for one that is no text or has an open quote.
    """
    lists = set_by(ARMS, chosen) if typed is None else [typed]
    for arms in lists:
        if isinstance(arms, str) or not isinstance(arms, Sequence):
            raise ValueError(f"{ARMS}={arms} is no list; write {ARMS}='[\"{arms}\"]'")
    return [_arm(arm) for arms in lists for arm in arms] or [[]]


def _arm(arm: Any) -> list[str]:
    if not isinstance(arm, str):
        raise ValueError(
            f"{ARMS}: YAML reads the arm {arm} as something other than text; put the whole arm into quotes"
        )
    try:
        return shlex.split(arm)
    except ValueError as error:
        raise ValueError(f"{ARMS}: the arm {arm} cannot be split into overrides: {error}; close its quotes") from None


def check_owners(chosen: Mapping[str, Choice]) -> None:
    """Raises ValueError if two files choose the same axis, or if a method's axis is chosen otherwise beside it.

    Hydra would silently keep one of the two, and a table would show the run under the name of a method that it is not.
    """
    choosing = [
        [[(group, name) for name in names] for names in choice.alternatives]
        for group, choice in chosen.items()
        if any(axes(group, name) for names in choice.alternatives for name in names)
    ]
    for job in product(*choosing):
        _check_job([file for files in job for file in files], chosen)


def axes(group: str, name: str, conf: Path | None = None) -> dict[str, Names]:
    """The groups of which a file chooses with `override /group: choice`, and its choices."""
    entries = _content(group, name, conf).get("defaults") or []
    pairs = [pair for entry in entries if OmegaConf.is_dict(entry) for pair in entry.items()]
    overriding = [(key.removeprefix("override "), value) for key, value in pairs if key.startswith("override ")]
    return {key.strip().lstrip("/"): _names(value) for key, value in overriding}


def _content(group: str, name: str, conf: Path | None = None) -> Any:
    path = file_of(group, name, conf)
    content = OmegaConf.load(path) if path.exists() else None
    return content if isinstance(content, DictConfig) else OmegaConf.create()


def _check_job(files: list[File], chosen: Mapping[str, Choice]) -> None:
    owners: dict[str, tuple[str, Names]] = {}
    waiting = list(files)
    while waiting:
        group, name = waiting.pop(0)
        for axis, names in axes(group, name).items():
            if axis in owners:
                other, theirs = owners[axis]
                raise ValueError(
                    f"{other} and {group}={name} both choose {axis} ({_written(theirs)} and {_written(names)}); "
                    f"drop one of the two, or take {axis} out of the defaults of one file"
                )
            _check_several(f"{group}={name}", axis, names)
            owners[axis] = f"{group}={name}", names
            if axis not in chosen:
                waiting += [(axis, name) for name in names]
    for axis, (owner, names) in owners.items():
        if owner.startswith("method=") and axis in chosen:
            _check_method(owner, axis, names, chosen[axis])


def _check_several(owner: str, axis: str, names: Names) -> None:
    try:
        check_several(axis, names)
    except ValueError as error:
        raise ValueError(f"{owner} chooses {error}") from None


def _check_method(method: str, axis: str, names: Names, choice: Choice) -> None:
    for other in choice.alternatives:
        if other != names:
            raise ValueError(
                f"{method} means {axis}={_written(names)}, but {choice.source} sets {axis}={_written(other)}, "
                f"so the results would bear a wrong name; drop {method}, or set {axis}={_written(names)}"
            )


def _written(names: Names) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
