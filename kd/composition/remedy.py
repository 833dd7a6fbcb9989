"""Remedies: a config that does not fit is changed, choice by choice, until it does.

Every recommendation was checked: the choices are searched best first, and where the command line is known, the new one
is composed by Hydra and checked as a whole.
"""

import heapq
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kd.components.axes import AXES, points, replaceable
from kd.components.choices import axes, choices, content
from kd.composition.interfaces import made_by
from kd.composition.lacks import Lack
from kd.program import typed

Config = dict[str, Any]  # resolved
Misfits = Callable[[Config], list[ValueError]]
Models = Callable[[DictConfig], None]
Change = tuple[str, ...]  # overrides that are made together

SETTINGS = {  # keys whose values some terms or targets depend on; tried where the config has the key and another value
    "rollout.samples": (4, 1),
    "rollout.writer.samples": (4,),
    "rollout.capacity": (None,),
    "rollout.max_age": (None,),
    "targets.cached": (False,),
    "targets.tail": ("tail_bucket",),
    "teacher.combine": ("mean_probabilities",),
    "checkpoint.monitor": ("validation/bits_per_byte",),
    "compare": (None,),
    "budget.teacher_tokens": (None,),
    "budget.generated_tokens": (None,),
}
MOST = 4  # changes
CHECKED = 400  # configs; in trials a remedy, if any, was among the first 210 of them
EAGER = 0.9  # below 1: a change that resolves one error is followed at once
MANY = 3  # files of a group that are named beside the one that is taken
EXPLICIT = 0.5  # added to the cost of changing what the command line chose
DEEPER = 0.005  # added for a setting that is changed with its group


@dataclass(frozen=True)
class Line:
    """The overrides of the command line, and the groups of which a method decides."""

    words: tuple[str, ...]
    fixed: frozenset[str] = frozenset()

    @classmethod
    def given(cls) -> "Line | None":
        """The line of the job which Hydra runs or checks; None outside of Hydra's applications."""
        if not HydraConfig.initialized() or not GlobalHydra.instance().is_initialized():
            return None
        return cls.of(tuple(HydraConfig.get().overrides.task))

    @classmethod
    def of(cls, words: Sequence[str]) -> "Line":
        """These overrides."""
        chosen = dict(word.split("=", 1) for word in words if "=" in word)
        files = [(group, chosen[group]) for group in points() if chosen.get(group) not in (None, "null")]
        fixed = {axis for group, name in files for axis in axes(group, name)}
        return cls(tuple(words), frozenset(fixed))

    def chose(self, key: str) -> bool:
        """True if the command line sets this key or group itself."""
        return any(word.split("=", 1)[0].lstrip("+") == key for word in self.words)

    def changed(self, changes: Sequence[str]) -> "Line":
        """The line with these overrides in place of those that they contradict."""
        keys = [change.split("=", 1)[0] for change in changes]
        groups = [key for key in keys if key in replaceable()]

        def stays(word: str) -> bool:
            key = word.split("=", 1)[0].lstrip("+~")
            group, _, inner = key.partition(".")
            if key in keys or group not in groups:
                return key not in keys
            chosen = next(change.split("=", 1)[1] for change in changes if change.startswith(f"{group}="))
            return OmegaConf.select(OmegaConf.create(content(group, chosen)), inner) is not None

        return Line((*filter(stays, self.words), *changes), self.fixed)

    def config(self) -> DictConfig:
        """The config that Hydra composes from the line."""
        return compose("config", overrides=list(self.words))

    def __str__(self) -> str:
        return typed(self.words)


def explained(
    cfg: DictConfig, errors: Sequence[ValueError], misfits: Misfits, line: Line | None, models: Models | None = None
) -> str:
    """One sentence of all errors and their remedy: the choices, and the command line where there is one."""
    facts = _facts(errors)
    lacks = [error for error in errors if isinstance(error, Lack)]
    search = Search(cfg, misfits, line)
    for changes in search.solutions(errors):
        words = [word for change in changes for word in change]
        new = None if line is None else line.changed(words)
        if not _fails(new or applied(cfg, words), misfits, models):
            taken = f"; take {search.described(changes, lacks)}" if lacks else ""
            return facts + taken + (f", as in: {new}" if new else "")
    ways = [f"{group}={' or '.join(names)}" for lack in lacks for group, names in lack.ways.items() if names]
    return facts + (f"; see {', '.join(dict.fromkeys(ways))}" if ways else "")


def unresolved(cfg: DictConfig, lack: Lack, misfits: Misfits, line: Line | None, models: Models | None) -> str:
    """The sentence for a config with an interpolation that no chosen file resolves."""
    fixed = frozenset[str]() if line is None else line.fixed
    words = [f"{group}={name}" for group, names in lack.ways.items() if group not in fixed for name in names]
    fits = (w for w in words if not _fails(line.changed([w]) if line else applied(cfg, [w]), misfits, models))
    if not (able := list(islice(fits, MANY))):
        return "; ".join([str(lack), *_beyond(cfg, words, misfits, line, models)])
    return f"{lack}; take {' or '.join(able)}" + (f", as in: {line.changed(able[:1])}" if line else "")


def _beyond(
    cfg: DictConfig, words: Sequence[str], misfits: Misfits, line: Line | None, models: Models | None
) -> Iterator[str]:
    """The further errors once the first of the words that give values is taken."""
    for word in words:
        other = applied(cfg, [word])
        try:
            errors = misfits(OmegaConf.to_container(other, resolve=True))  # type: ignore[arg-type]
        except OmegaConfBaseException:
            continue
        yield f"take {word}; " + explained(other, errors, misfits, line and line.changed([word]), models)
        return


def _facts(errors: Sequence[ValueError]) -> str:
    """The errors joined, each once, also where an error of the baseline is one of the run's own."""
    facts = dict.fromkeys(map(str, errors))
    return "; ".join(
        text for text in facts if re.sub(r"^compare=\w+: ", "", text) not in facts or text[:8] != "compare="
    )


def _ways(error: ValueError) -> set[str]:
    """The overrides in an error's remedy, as `group=name` and keys of SETTINGS."""
    if isinstance(error, Lack):
        files = {f"{group}={name}" for group, names in error.ways.items() for name in names}
        return files | {key for key in SETTINGS if key.partition(".")[0] in error.ways}
    remedy = str(error).partition("; ")[2]
    files = set(re.findall(r"\b[a-z]+=\w+", re.sub(r"(\b[a-z]+=)(\w+) or (?=\w+\b(?!=))", r"\1\2 \1", remedy)))
    return files | {key for key in SETTINGS if f"{key}=" in remedy}


def _fails(run: DictConfig | Line, misfits: Misfits, models: Models | None) -> bool:
    try:
        cfg = run.config() if isinstance(run, Line) else run
        if misfits(OmegaConf.to_container(cfg, resolve=True)):  # type: ignore[arg-type]
            return True
        if models is not None:
            models(cfg)
    except (HydraException, OmegaConfBaseException, ValueError):
        return True
    return False


def applied(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """The config with the files and values of these overrides."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key, _, value in (word.partition("=") for word in words):
            new = content(key, value) if key in AXES else _value(value)
            OmegaConf.update(cfg, key, new, merge=False)
    return cfg


class Search:
    """Choices with which a config fits, the fewest and simplest first: best first over changes of one group or key.

    It works on resolved configs, where a file is resolved beside the choices of the original config; a solution has to
    be checked once more as a whole.
    """

    def __init__(self, cfg: DictConfig, misfits: Misfits, line: Line | None):
        self.cfg, self.misfits, self.line = cfg.copy(), misfits, line
        self.start: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        self.nodes: dict[tuple[str, str], Any] = {}

    def solutions(self, errors: Sequence[ValueError]) -> Iterator[tuple[Change, ...]]:
        """Sets of changes that leave no error. `errors`: those of the config itself.

        Next is always the set with the least sum of the changes' costs and the number of errors left.
        """
        heap: list[tuple[float, int, float, tuple[Change, ...], Sequence[ValueError]]] = [(0.0, 0, 0.0, (), errors)]
        number, seen = count(1), set[frozenset[Change]]()
        while heap and len(seen) < CHECKED:
            _, _, cost, changes, left = heapq.heappop(heap)
            if not left:
                yield tuple(sorted(changes, key=_place))
                continue
            here = self.applied(changes)
            for change, price in self._neighbours(here, changes, left) if len(changes) < MOST else ():
                new = (*changes, change)
                if frozenset(new) not in seen and (config := self.applied(new)) is not None:
                    seen.add(frozenset(new))
                    found = self.misfits(config)
                    total = cost + price
                    estimate = EAGER * total + len(set(map(str, found)))
                    heapq.heappush(heap, (estimate, next(number), total, new, found))

    def described(self, changes: Sequence[Change], lacks: Sequence[Lack]) -> str:
        """The changes, each with alternative files, and an alternative to all of them."""
        ways = dict.fromkeys((g, n) for lack in lacks for g, names in lack.ways.items() for n in names)
        parts = []
        for change in changes:
            group = change[0].split("=", 1)[0]
            rest = [other for other in changes if other is not change]
            others = self._able([name for g, name in ways if g == group and f"{g}={name}" != change[0]], group, rest)
            parts.append(" ".join(change) + (f" (or {group}={' or '.join(others)})" if others else ""))
        changed = {change[0].split("=", 1)[0] for change in changes}
        text = ", ".join(parts)
        for group in dict.fromkeys(group for group, _ in ways if group not in {*changed, "compare"}):
            if others := self._able([name for g, name in ways if g == group], group, ()):
                text += f", or {group}={' or '.join(others)} alone"
        return text

    def _able(self, names: Sequence[str], group: str, beside: Sequence[Change]) -> list[str]:
        able = (name for name in names if _whole(group, name) and self._fits((*beside, (f"{group}={name}",))))
        return list(islice(able, MANY))

    def _fits(self, changes: Sequence[Change]) -> bool:
        config = self.applied(changes)
        return config is not None and _one_text(config) and not self.misfits(config)

    def applied(self, changes: Sequence[Change]) -> Config | None:
        """The resolved config after these changes; None where a file cannot be resolved here."""
        config = dict(self.start)
        for key, _, value in (word.partition("=") for change in changes for word in change):
            if key in AXES:
                if (node := self._node(key, value)) is None:
                    return None
                config[key] = node
            else:
                config = _with(config, key.split("."), _value(value))
        return config

    def _node(self, group: str, name: str) -> Any:
        if (group, name) not in self.nodes:
            before = self.cfg[group]
            with open_dict(self.cfg):
                self.cfg[group] = content(group, name)
                try:
                    self.nodes[group, name] = OmegaConf.to_container(self.cfg[group], resolve=True)
                except OmegaConfBaseException:
                    self.nodes[group, name] = None
                self.cfg[group] = before
        return self.nodes[group, name]

    def _neighbours(
        self, config: Config | None, changes: Sequence[Change], errors: Sequence[ValueError]
    ) -> Iterator[tuple[Change, float]]:
        """The possible next changes, with their costs: the remedies of each error, or all changes if one has none."""
        done = {change[0].split("=", 1)[0] for change in changes}
        done |= set() if self.line is None else self.line.fixed
        ways = [_ways(error) for error in errors]
        wanted, every = set[str]().union(*ways), not all(ways)
        for key, values in SETTINGS.items():
            group = key.partition(".")[0]
            if (every or key in wanted) and not {key, group} & done and _settable(config or {}, key, values):
                for i, value in enumerate(values):
                    yield (f"{key}={_yaml(value)}",), 1 + i * DEEPER + self._price(key)
        for group in (group for group in replaceable() if group not in done):
            names = [name for name in _ordered(group) if every or f"{group}={name}" in wanted]
            for i, name in enumerate(names):
                price = 1 + i / 100 + self._price(group)
                yield (f"{group}={name}",), price
                if group == "rollout" and (samples := _samples(name)):
                    yield (f"{group}={name}", f"{samples}=4"), price + DEEPER

    def _price(self, key: str) -> float:
        return EXPLICIT if self.line is not None and self.line.chose(key) else 0.0


def _with(config: Config, path: Sequence[str], value: Any) -> Config:
    """The config with another value at a path."""
    first, *rest = path
    return {**config, first: _with(config.get(first) or {}, rest, value) if rest else value}


def _place(change: Change) -> int:
    """The sort key of a change: the order of the groups, keys last."""
    return [*replaceable(), *SETTINGS].index(change[0].partition("=")[0])


def _value(text: str) -> Any:
    """The value of an override."""
    return OmegaConf.create(f"value: {text}").value


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _settable(config: Config, key: str, values: Sequence[object]) -> bool:
    """True if the config has such a key, with a value other than the recommended ones."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return node != values[0]


def _samples(rollout: str) -> str | None:
    """The key of the number of responses that a rollout generates."""
    node = content("rollout", rollout)
    if "samples" in node:
        return "rollout.samples"
    return "rollout.writer.samples" if "samples" in node.get("writer", {}) else None


def _one_text(config: Config) -> bool:
    """True if teacher and student may share a tokenizer, as far as the config shows without loading one."""
    models = (config["teacher"].get("model"), config["student"]["model"])
    named = [node and node.get("tokenizer", node.get("source")) for node in models]
    own = [{"address": one} if isinstance(one, str) else one for one in named]
    return None in own or own[0] == own[1] or made_by("alignment", config["alignment"]).translates


def _whole(group: str, name: str) -> bool:
    """True if a file leaves no value to the user."""
    return "???" not in str(content(group, name))


@cache
def _ordered(group: str) -> list[str]:
    """The files of a group that leave no value to the user, those that its row names first."""
    names = [name for name in (*AXES[group].first, *choices(group)) if _whole(group, name)]
    return list(dict.fromkeys(names))
