"""The command line, read before Hydra reads it: a misspelt key or choice is answered with the nearest one.

What is known is taken from the files of `conf/` and from the config that the chosen ones compose.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kd.components.allowed import allow_typed, check_hydra
from kd.components.axes import points
from kd.components.choices import (
    ARMS,
    CONF,
    MODE,
    SEARCHED,
    Choice,
    alternatives,
    arms_of,
    check_choice,
    check_owners,
    folder_at,
    is_group,
    parsed,
    set_by,
    sweeps_of,
)
from kd.components.launchers import use_own_launchers
from kd.composition.places import check_folder
from kd.composition.suggestions import NoSuchKey, flattened, nearest
from kd.errors import explained
from kd.secrets import note


def check_overrides(arguments: Sequence[str], conf: Path = CONF, single: bool = False) -> None:
    """Checks that the overrides of a command line name files and keys of `conf/` and of the folders that the user adds.

    The code that a typed `run.allow` names is allowed from here on. Values of `hydra.*` are left to Hydra.

    single: one config is composed of them, and no sweep follows, whichever `hydra.mode` a file has.

    Raises ValueError, in one sentence: a flag that Hydra does not have, a choice without a file, a key that is not in
    the config, two files that choose the same axis, a method and a choice that contradicts it, a file whose section
    `hydra` would execute what the user did not allow, an interpolation on the command line that leads nowhere.
    """
    flags = _flags(arguments)
    elsewhere = str(flags.config_path or "").startswith("pkg://") or flags.experimental_rerun
    if flags.shell_completion or flags.hydra_help or elsewhere:
        return
    with started(conf.parent / (flags.config_path or conf), flags.config_dir, flags.overrides):
        typed = list(map(parsed, flags.overrides))
        allow_typed(typed)
        given = {"the command line": [o for o in typed if not _of_hydra(o)]}
        for override in (o for o in given["the command line"] if is_group(o)):
            check_choice(override)
        typed_groups = {override.key_or_group for override in given["the command line"]}
        for source, override in sweeps_of(_chosen(given)):
            if override.key_or_group not in typed_groups:
                given.setdefault(source, []).append(override)
        of_hydra = [o for o in typed if _of_hydra(o)]
        swept = not single and (flags.multirun or _mode(typed, given) == "MULTIRUN" or _sweeps(typed))
        _check_any(given, of_hydra, flags.config_name or "config", swept)


def _flags(arguments: Sequence[str]) -> Any:
    """The flags of Hydra's command line. Raises ValueError for one that it does not have."""
    parser = get_args_parser()
    flags, others = parser.parse_known_args(list(arguments))
    for word in others:
        if "=" in word and not word.startswith("-"):
            raise ValueError(f"{word} stands apart from other overrides; write flags first, then all overrides")
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        near = get_close_matches(word, known, n=1)
        question = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{word}: there is no such flag; {question}")
    return flags


@contextmanager
def started(conf: str | Path = CONF, more: str | Path | None = None, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Hydra on the config folder `conf` and, after it, `more`, as `--config-dir` adds it, and `hydra.searchpath`.

    overrides: of the command line, among which `hydra.searchpath` may be.

    Raises ValueError if one of them is no folder.
    """
    for folder in (Path(conf), *([Path(more)] if more else [])):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder, but configs were to be read there; give one that holds yamls")
    if not (Path(conf) / "config.yaml").exists():
        raise ValueError(f"{Path(conf) / 'config.yaml'} does not exist; correct the folder, or install kd again")
    use_own_launchers()
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(conf).absolute())):
        searched = _searched(overrides)
        if more or searched:
            places = create_config_search_path(str(Path(conf).absolute()))
            if more:
                places.prepend("command-line", f"file://{Path(more).absolute()}", anchor="schema")
            for path in searched:
                places.prepend(SEARCHED, path, anchor="schema")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2(task_name="app", config_search_path=places)
        yield


def _searched(overrides: Sequence[str]) -> list[str]:
    """The entries of `hydra.searchpath` on the command line. Raises ValueError for one that is no folder."""
    given = (parsed(word) for word in overrides if word.partition("=")[0].lstrip("+") == SEARCHED)
    value = next((override.value() for override in given), [])
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"{SEARCHED}={value} is no list of folders; write {SEARCHED}=[FOLDER] or [pkg://PACKAGE]")
    for path in value:
        folder = folder_at(path)
        if folder is None or not folder.is_dir():
            raise ValueError(
                f"{SEARCHED}=[{path}]: there is no such folder or package; give a folder that holds yamls, "
                "or pkg://PACKAGE, with the package's parent in PYTHONPATH"
            )
    return value


def _of_hydra(override: Override) -> bool:
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _chosen(given: Mapping[str, Sequence[Override]]) -> dict[str, Choice]:
    """The groups that are chosen, each with its file and the source of the choice."""
    return {
        override.key_or_group: Choice(source, alternatives(override))
        for source, overrides in given.items()
        for override in overrides
        if is_group(override) and not override.is_delete() and override.package is None
    }


def _sweeps(typed: Sequence[Override]) -> bool:
    return any(override.is_sweep_override() for override in typed)


def _mode(typed: Sequence[Override], given: Mapping[str, Sequence[Override]]) -> str | None:
    """`hydra.mode` of the command line, else of a chosen file: a file may begin a sweep without -m."""
    modes = [str(override.value()) for override in typed if override.key_or_group == MODE]
    found = modes or [str(mode) for mode in set_by(MODE, _chosen(given))]
    return found[-1] if found else None


def _check_any(
    given: Mapping[str, Sequence[Override]], of_hydra: Sequence[Override], config_name: str, swept: bool
) -> None:
    """Check the overrides beside an arm of the grid: another arm, or the sweeper, decides where they do not fit one.

    swept: a sweep follows; arms are nothing to a single run.

    Raises, where no arm fits, the error beside the arm that has the key most like the missing one.
    """
    typed: list[Any] = [override.value() or () for override in of_hydra if override.key_or_group == ARMS]
    errors = []
    for arm in arms_of(typed[-1] if typed else None, _chosen(given)) if swept else [[]]:
        chosen = [override for override in map(parsed, arm) if is_group(override)]
        try:
            return _check_all(given, chosen, of_hydra, config_name)
        except ValueError as error:
            errors.append(error)
    raise max(errors, key=lambda error: error.likeness if isinstance(error, NoSuchKey) else 0.0)


def _check_all(
    given: Mapping[str, Sequence[Override]], arm: Sequence[Override], of_hydra: Sequence[Override], config_name: str
) -> None:
    overrides = [override for several in given.values() for override in several]
    groups = [override for override in overrides if is_group(override)]
    for override in groups:
        check_choice(override)
    check_owners(_chosen(given))
    keys = [override for override in overrides if not is_group(override)]
    compositions = _compositions([*groups, *arm], keys)
    plugins = [override.input_line or "" for override in of_hydra if is_group(override)]
    configs = [_composed(config_name, [*lines, *plugins]) for lines in compositions]
    for cfg in configs:
        with open_dict(cfg):
            check_hydra(cfg.pop("hydra"), [override.key_or_group for override in of_hydra])
    _check_keys(keys, compositions, configs)
    _check_whole(config_name, [*compositions[0], *map(_first, keys), *(o.input_line or "" for o in of_hydra)])


def _first(override: Override) -> str:
    """The override itself, or the first value of its sweep."""
    if override.is_discrete_sweep():
        return _lines(override)[0]
    return f"++{override.key_or_group}=1" if override.is_sweep_override() else override.input_line or ""


def _check_whole(config_name: str, lines: Sequence[str]) -> None:
    """Checks the parts that Hydra composes and makes before the task begins."""
    cfg = _composed(config_name, lines)
    with open_dict(cfg):
        hydra = cfg.pop("hydra")
    root = OmegaConf.select(cfg, "run.root", throw_on_missing=False)
    if isinstance(root, str):
        check_folder(f"run.root={root}", Path(root), "run.root=...")
    note(cfg)
    if hydra.get("sweeper", {}).get("params"):
        note(hydra.sweeper)


def _compositions(groups: Sequence[Override], keys: Sequence[Override]) -> list[list[str]]:
    """Choices to compose: the first of each sweep; then the others, one sweep at a time, where a key depends on it."""
    lines = [_lines(override) for override in groups]
    first = [options[0] for options in lines]
    compositions = [first]
    for i, override in enumerate(groups):
        group = override.key_or_group
        everywhere = group in points()  # their keys may be anywhere
        if any(everywhere or key.key_or_group.startswith(f"{group}.") for key in keys):
            compositions += [[*first[:i], line, *first[i + 1 :]] for line in lines[i][1:]]
    return compositions


def _lines(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [override.input_line or ""]


def _composed(config_name: str, lines: Sequence[str]) -> DictConfig:
    try:
        return compose(config_name, overrides=list(lines), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        what = " ".join(lines) if 0 < len(lines) < 4 else "the config"
        raise ValueError(f"{what} cannot be composed: {explained(error)}") from None


def _check_keys(keys: Sequence[Override], compositions: Sequence[list[str]], configs: Sequence[DictConfig]) -> None:
    """Raises ValueError for a key that a composition does not have, or has already where it is to be added."""
    for override in keys:
        known = [flattened(cfg) for cfg in configs]
        for lines, here in zip(compositions, known, strict=True):
            _check_added(override, here)
            for missing in _missing(_bracketed(override), override, here):
                if any(missing in there for there in known):
                    raise ValueError(
                        f"{override.input_line}: {missing} does not exist with {' '.join(lines)}; drop one"
                    )
                raise NoSuchKey(override, missing, here)
        for cfg in configs:
            _update(cfg, override)
    for override in keys:
        for cfg in configs:
            _check_interpolation(cfg, override)


def _bracketed(override: Override) -> str:
    """The key with list indices as `flattened` writes them."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", override.key_or_group)


def _check_added(override: Override, known: Mapping[str, Any]) -> None:
    key, extends = _bracketed(override), isinstance(override.value(), dict | list)
    if override.is_add() and known.get(key) is not None and not extends:
        raise ValueError(f"{override.input_line}: {key} is in the config already; leave the + out to change it")


def _update(cfg: DictConfig, override: Override) -> None:
    """Sets the value, as a later override may refer to it; of a sweep only the key is checked."""
    if override.is_delete() or override.is_sweep_override():
        return
    try:
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{override.input_line} cannot be set: {str(error).splitlines()[0]}") from None


def _check_interpolation(cfg: DictConfig, override: Override) -> None:
    """Raises ValueError for an interpolation on the command line that leads nowhere: Hydra itself reads some keys."""
    if "${" not in (override.input_line or "") or override.is_delete() or override.is_sweep_override():
        return
    try:
        value = OmegaConf.select(cfg, override.key_or_group, throw_on_resolution_failure=True)
        if OmegaConf.is_config(value):
            OmegaConf.resolve(value)
    except OmegaConfBaseException as error:
        raise ValueError(f"{override.input_line}: {_unresolved(str(error), cfg)}") from None


def _unresolved(error: str, cfg: DictConfig) -> str:
    """The reason for which an interpolation leads nowhere, and the remedy."""
    line = error.splitlines()[0]
    if variable := re.search(r"Environment variable '(.+)' not found", line):
        return f"the environment variable {variable[1]} is not set; set it, or write ${{oc.env:{variable[1]},DEFAULT}}"
    if key := re.search(r"Interpolation key '(.+)' not found", line):
        near = nearest(key[1], list(flattened(cfg)))
        return f"the config has no {key[1]}; {f'did you mean ${{{near}}}?' if near else 'give a value'}"
    if resolver := re.search(r"Unsupported interpolation type (\S+)", line):
        return f"there is no resolver {resolver[1]}; give a value, ${{a key of the config}} or ${{oc.env:VARIABLE}}"
    if "Recursive interpolation" in line:
        return "the interpolation leads back to itself; give a value"
    return f"the interpolation cannot be resolved: {line.rpartition('interpolation: ')[2]}; give a value"


def _missing(key: str, override: Override, known: Mapping[str, Any]) -> list[str]:
    """The keys of an override that the config lacks: its own, or those of a mapping that is merged into one there."""
    if override.is_add() or override.is_force_add():
        return []
    if key not in known:
        return [key]
    value = override.value()
    merged = flattened(value, key) if isinstance(value, dict) and isinstance(known[key], dict) else {}
    return [inner for inner in merged if inner not in known and known.get(inner.rpartition(".")[0])]
