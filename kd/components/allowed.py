"""The code that a config may name: its `_target_`s are executed, so a file alone allows none but the project's.

The project's are those of the modules that the yamls in `conf/` name, and Lightning's loggers and callbacks. The
user allows more, by the name of a package, a module or a function: `run.allow=[my_losses]` on the command line, or
`KD_ALLOW=my_losses` in the environment. Only the environment counts after the start (`allow_typed`): files can set
`run.allow`, too, and so can the parameters of a sweep.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kd.components.choices import CONF
from kd.permission import ALLOW, permitted

KEY = "run.allow"
JOB = "KD_SWEEP"  # set in the environment of a sweep's job, whose overrides may come out of a file
LIGHTNING = ("lightning.pytorch.loggers", "lightning.pytorch.callbacks")
OF_HYDRA = ("hydra._internal.core_plugins", "hydra.experimental.callbacks", "hydra_plugins")  # in the section hydra
MADE = ("hydra.callbacks", "hydra.launcher", "hydra.sweeper")  # of `_target_`s, before any task begins
LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
LOGGERS = (
    *(f"logging.{name}" for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter", "Filter")),
    "colorlog.ColoredFormatter",
)
OUTPUT = "${hydra.runtime.output_dir}/"  # the one interpolation that a logging section may begin a value with
BY_NAME = (  # they reach the environment or the shell of a job, or send the environment to a cluster
    "hydra.job.env_set",
    *(f"hydra.launcher.{key}" for key in ("setup", "teardown", "python", "srun_args", "address")),
)


def allow_typed(overrides: Iterable[Override]) -> None:
    """Put the names of a typed `run.allow=[...]` into the environment, where jobs and ranks find them."""
    if JOB in os.environ:
        return
    for override in overrides:
        if override.key_or_group == KEY and not override.is_delete() and not override.is_sweep_override():
            os.environ[ALLOW] = ",".join([*sorted(permitted()), *_names(override.value())])


def check_allowing(names: Sequence[str]) -> None:
    """Raises ValueError for names of `run.allow` that a file allows, and not the user."""
    if foreign := [name for name in names if name not in permitted()]:
        listed = ",".join(foreign)
        raise ValueError(
            f"run.allow=[{listed}] stands in a file or was swept, and files allow no code; "
            f"type run.allow=[{listed}] as one override of the command, or set {ALLOW}={listed}"
        )


def check_named(path: str, dotted: str) -> None:
    """Raises ValueError, before anything is imported, if the `_target_` at `path` is not for a config to name."""
    package = dotted.partition(".")[0]
    if package == "kd" or _inside(dotted, (*LIGHTNING, *permitted())):
        return  # objects in kd are checked by `check_found`
    if "." not in dotted or find_spec(package) is None:
        raise ValueError(f"{path}._target_={dotted}: no package {package} is installed; ours are in kd")
    raise ValueError(_refused(path, dotted, package))


def check_found(path: str, dotted: str, found: Any) -> None:
    """Raises ValueError if the object at `dotted` is none of the project's components, and the user does not allow it.

    A path through an allowed module may end in another one, as kd.sweeps.jobs.os.system does: the module that defines
    the function or class counts.
    """
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if isinstance(module, str) and _inside(f"{module}.{name}", (*LIGHTNING, *permitted())):
        return
    if module in components() and dotted == f"{module}.{name}" and "." not in name and name[0] != "_":
        return
    where = f"{module}.{name}" if isinstance(module, str) else repr(type(found).__name__)
    raise ValueError(_refused(path, dotted, where if where != dotted else dotted))


def _refused(path: str, dotted: str, name: str) -> str:
    leads = f", which is {name}," if name not in dotted else ""
    return (
        f"{path}._target_={dotted}{leads} is not one of the project's components, and a config executes what it names; "
        f"if you trust it, add run.allow=[{name}] to the command line, or set {ALLOW}={name}"
    )


def _inside(dotted: str, names: Iterable[str]) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in names)


@lru_cache(maxsize=1)
def components() -> frozenset[str]:
    """The modules of kd that the yamls in `conf/` name."""
    return frozenset(target.rpartition(".")[0] for target in _targets() if target.startswith("kd."))


@lru_cache(maxsize=2)
def _targets(hydra: bool = False) -> frozenset[str]:
    """Every `_target_` and `reader` of the project's yamls, those of the section hydra apart."""
    files = [path for path in CONF.rglob("*.yaml") if ("hydra" in path.relative_to(CONF).parts) == hydra]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return frozenset(found for text in texts for found in re.findall(r"\b(?:_target_|reader): *([\w.]+)", text))


# ---- the section that Hydra itself carries out, before any task begins -----------------------------------------------


def check_hydra(hydra: DictConfig, typed: Iterable[str]) -> None:
    """Raises ValueError for code that the section `hydra` of a composed file would have executed.

    typed: the keys on the command line, which the user has set.
    """
    section: Any = OmegaConf.to_container(hydra, resolve=False)
    given = tuple(typed)
    for path, node in _mappings("hydra", section):
        target = node.get("_target_")
        if target is not None and not _inside(f"{path}._target_", given) and not _of_hydra(str(target)):
            raise ValueError(_refused(path, str(target), str(target).partition(".")[0]))
        if _inside(path, LOGGING):
            _check_logging(path, node)
    for path, text in _texts("hydra", section):
        if _inside(path, MADE) and not _inside(path, given):
            _check_reference(path, text)
    _check_sweeper(section.get("sweeper") or {}, given)
    _check_preload(section.get("launcher") or {}, given)
    for key in BY_NAME:
        value = OmegaConf.select(hydra, key.removeprefix("hydra."), default=None)
        if value and not _inside(key, (*given, *permitted())) and not any(_inside(name, (key,)) for name in given):
            raise ValueError(
                f"{key} is set in a file, and reaches or sends away the environment or shell of jobs; if you trust it, "
                f"add run.allow=[{key}] to the command line, or set {ALLOW}={key}"
            )


def _of_hydra(target: str) -> bool:
    if target in _targets(hydra=True) or _inside(target, permitted()):
        return True
    return _inside(target, OF_HYDRA) and _is_class(target)


def _is_class(target: str) -> bool:
    """Return whether a dotted path names a class in the module that defines it, not in one that imports it."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == target


def _check_reference(path: str, text: str) -> None:
    """A value that is an interpolation as a whole may become a node, with a `_target_` that stands elsewhere."""
    if text.startswith("${") and not re.fullmatch(r"\$\{hydra\.[\w.]+\}.*", text):
        raise ValueError(
            f"{path}={text}: what a file refers to there would be executed before it could be checked; "
            "write the value itself, or type it on the command line"
        )


def _check_sweeper(sweeper: Mapping[str, Any], typed: Sequence[str]) -> None:
    check = sweeper.get("check")
    if check not in (None, "kd.experiment.plan.check") and not _inside("hydra.sweeper.check", typed):
        raise ValueError(
            f"hydra.sweeper.check={check}: jobs are checked by kd.experiment.plan.check; a file names no other"
        )


def _check_preload(launcher: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Modules are executed when they are imported."""
    for name in launcher.get("preload") or ():
        if not _inside(str(name), ("kd", *permitted())) and not _inside("hydra.launcher.preload", typed):
            raise ValueError(
                f"hydra.launcher.preload: {name} is no module of kd, and importing it executes it; if you trust it, "
                f"add run.allow=[{name}] to the command line, or set {ALLOW}={name}"
            )


def _check_logging(path: str, node: Mapping[str, Any]) -> None:
    """Python's logging configuration makes handlers, filters and formatters of any class or function that it names."""
    for key in ("()", "class"):
        if (factory := node.get(key, LOGGERS[0])) not in LOGGERS:
            raise ValueError(f"{path}.{key}={factory}: a config may name {', '.join(LOGGERS)} alone")
    for key, value in node.items():
        for place, text in _texts(f"{path}.{key}", value):
            if "${" in text and not (text.startswith(OUTPUT) and ".." not in text):
                raise ValueError(f"{place}={text}: the one interpolation of a logging section begins with {OUTPUT}")
            if "://" in text and not text.startswith("ext://sys.std"):
                raise ValueError(f"{place}={text}: a config may name ext://sys.stdout and ext://sys.stderr alone")
    if not str(node.get("filename", ".log")).endswith(".log"):
        raise ValueError(f"{path}.filename={node['filename']}: a config may log into files named *.log alone")


def _mappings(path: str, value: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield path, value
        for key, child in value.items():
            yield from _mappings(f"{path}.{key}", child)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _mappings(f"{path}[{i}]", child)


def _texts(path: str, value: Any) -> Iterable[tuple[str, str]]:
    """All texts below a node, by dotted path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _texts(f"{path}.{key}", child)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _texts(f"{path}[{i}]", child)


def _names(value: Any) -> list[str]:
    return [str(name) for name in (value if isinstance(value, list) else [value])]
