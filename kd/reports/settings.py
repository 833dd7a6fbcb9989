"""The settings in which runs differ, by their composed configs, however their overrides were spelled.

A section's label is its word: the names of an objective's terms, the trained skill, the file that an override chose
(`rollout=mixed`), else the class. Below a section, keys are compared among runs of the same label, so that the
hyperparameters of another loss are no difference.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd.reports.runs import Job
from kd.runs.folder import ENGINE, NOT_HASHED

TRAINED_ON = "trained on"  # the column of a run's own skill
# In this order columns are shown, and a column explains those after it.
ORDER = ("method", "objective", "rollout", TRAINED_ON, "augmentation", "teacher", "student", "reward", "targets")
BESIDE = (*NOT_HASHED, "seed", "compare")  # the seed has its own column; a neighbour changes no number of the run
FOR_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_")
ABSENT = "–"


@dataclass(frozen=True)
class Settings:
    """The settings of several runs.

    Attributes:
        columns: those that tell the runs apart, in the order in which they are shown.
        values: of each run, in the given order, its value in each column.
        along: for each column, the settings that differ with it and are not shown.
    """

    columns: Sequence[str]
    values: Sequence[Mapping[str, str]]
    along: Mapping[str, Sequence[str]] = field(default_factory=dict)


def settings_of(jobs: Sequence[Job]) -> Settings:
    """The columns in which jobs differ. A job without a config goes by its overrides."""
    flat = _Flattening(jobs)
    found = [flat.settings(job) for job in jobs]  # jobs of the same settings have the same object
    distinct = list({id(one): one for one in found}.values())
    composed = list({id(one): one for job, one in zip(jobs, found, strict=True) if job.config}.values())
    differing = _differing(composed or distinct) - _following_the_seed(jobs, found)
    methods = {"method"} if any("method" in job.overrides for job in jobs) else set()  # is named where it is the same
    keys = sorted(differing | methods, key=_place)
    rows = {id(one): {key: one.get(key, ("", ABSENT))[1] for key in keys} for one in distinct}
    chosen = {key for job in jobs for key in job.overrides}
    columns: list[str] = []
    along: dict[str, list[str]] = {}
    for key in keys:
        by = next((column for column in columns if _determines(list(rows.values()), column, key)), None)
        if by is None or key in chosen:
            columns.append(key)
        else:
            along.setdefault(by, []).append(key)
    return Settings(columns, [rows[id(one)] for one in found], along)


def every_setting(jobs: Sequence[Job]) -> list[Mapping[str, str]]:
    """All settings of each job by dotted name, whether jobs differ in them or not."""
    flat = _Flattening(jobs)
    return [{key: value for key, (_, value) in flat.settings(job).items()} for job in jobs]


def axes_of(job: Job, skill: str | None = None) -> dict[str, str]:
    """The axes by which runs are distinguished, as `{"objective": "fkl", "skill": "gsm_symbolic"}`, those of ORDER.

    skill: the name of the trained skill; None: that of the results.
    """
    found = {**every_setting([job])[0], **({TRAINED_ON: skill} if skill else {})}
    names = {TRAINED_ON: "skill"}
    return {names.get(key, key): found[key] for key in ORDER if found.get(key, ABSENT) != ABSENT}


def _place(key: str) -> tuple[int, str]:
    return (ORDER.index(key) if key in ORDER else len(ORDER), key)


Flat = dict[str, tuple[str, str]]  # by key: the labels of the sections that it lies in, and its value


class _Flattening:
    """The settings of jobs by dotted name. Sections that jobs share are read once."""

    def __init__(self, jobs: Sequence[Job]):
        self.texts: dict[int, str] = {}  # of a section, by its id
        self.pieces: dict[Hashable, Flat] = {}
        self.wholes: dict[tuple[int, ...], Flat] = {}
        self.words: dict[tuple[str, str], str] = {}  # by section and content: the file that an override chose
        for job in jobs:
            for name in job.config.keys() & job.overrides.keys():
                word, section = job.overrides[name], job.config[name]
                if isinstance(section, Mapping) and word[:1] not in "[{":
                    key = (name, self.text(section))
                    self.words[key] = min(self.words.get(key, word), word)

    def text(self, section: Any) -> str:
        """The content of a section as text."""
        return (
            self.texts.setdefault(id(section), text_of(section)) if isinstance(section, Mapping) else text_of(section)
        )

    def settings(self, job: Job) -> Flat:
        """The settings of a job."""
        pieces = [self.piece(("overrides", *job.overrides.items()))] if not job.config else self.of_config(job)
        return self.wholes.setdefault(tuple(map(id, pieces)), {k: v for piece in pieces for k, v in piece.items()})

    def of_config(self, job: Job) -> list[Flat]:
        """The settings of each section, the method that an override chose, and the versions of components."""
        skill = next(iter((job.results or {}).get("scores", ())), None)
        pieces = [self.piece(("overrides", ("method", job.overrides.get("method", ABSENT))))]
        for name, section in job.config.items():
            if name not in BESIDE:
                label = skill if name == "skill" and skill else self.words.get((name, self.text(section)))
                pieces.append(self.section(name, section, label))
        versions = (job.results or {}).get("versions") or {}
        return [*pieces, self.piece(("versions", *versions.items()))]

    def section(self, name: str, section: Any, label: str | None) -> Flat:
        """The settings under one key of the config."""
        key = (name, self.text(section), label)
        if key not in self.pieces:
            found: Flat = {}
            _walk(TRAINED_ON if name == "skill" else name, section, "", found, label)
            self.pieces[key] = found
        return self.pieces[key]

    def piece(self, key: tuple[Any, ...]) -> Flat:
        """Overrides, or versions of components, which are compared among the runs that have the component."""
        if key not in self.pieces:
            kind, *pairs = key
            plain, names = kind == "overrides", {"skill": TRAINED_ON}
            self.pieces[key] = {
                names.get(name, name) if plain else f"version of {name}": ("" if plain else name, str(value))
                for name, value in pairs
                if name not in BESIDE
            }
        return self.pieces[key]


def _walk(name: str, node: Any, scope: str, found: Flat, label: str | None = None) -> None:
    """Add the values under `node` by dotted name; `scope` has the labels of the sections around it."""
    if name in BESIDE or name.endswith(ENGINE):
        return
    if not isinstance(node, Mapping):
        found[name] = (scope, text_of(node))
        return
    label = _composed(name, node) or label or (_short(node["_target_"]) if "_target_" in node else None)
    if label is not None:
        found[name] = (scope, label)
        scope = f"{scope}/{label}"
    for key, value in node.items():
        if key not in FOR_HYDRA:
            _walk(f"{name}.{key}", value, scope, found)


def _composed(name: str, node: Mapping[str, Any]) -> str | None:
    """The label of a section that is made of several files."""
    if name == "objective":
        return "+".join(node) or ABSENT
    return ("+".join(node["stages"] or ()) or "none") if name == "augmentation" and "stages" in node else None


def _short(target: Any) -> str:
    """`kd.rollouts.on_policy.OnPolicy` as on_policy, `kd.models.networks.scratch` as scratch."""
    if not target:
        return "none"
    *_, module, name = ("", *str(target).split("."))
    return module if name.lower() == module.replace("_", "") else name


def text_of(value: Any) -> str:
    """A value as reports show it: `0.001`, `null`, `true`, a list as JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def as_shown(value: Any) -> str:
    """A value that a user wrote, in a file or a command, as reports show it: `1e-3` as `0.001`, `True` as `true`."""
    if not isinstance(value, str) or value.lower() in ("null", "true", "false"):
        return text_of(value.lower() if isinstance(value, str) else value)
    try:
        return value if re.fullmatch(r"[+-]?\d+", value) else text_of(float(value))
    except ValueError:
        return value


def has(settings: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Return whether settings have the wanted values, however these are written."""
    return all(name in settings and as_shown(settings[name]) == as_shown(value) for name, value in wanted.items())


def _following_the_seed(jobs: Sequence[Job], found: Sequence[Flat]) -> set[str]:
    """Keys such as `rollout.seed` and `student.prepare.seed` that are the run's own seed in every run that has them."""
    keys = {key for one in found for key in one if key.endswith(".seed")}
    own = [text_of((job.results or {}).get("seed", job.config.get("seed"))) for job in jobs]
    pairs = list(zip(found, own, strict=True))
    return {key for key in keys if all(one[key][1] == seed for one, seed in pairs if key in one)}


def _differing(runs: Sequence[Flat]) -> set[str]:
    """Keys with several values in sections of the same labels, or which a part of the runs with that section lacks."""
    in_scope: Counter[str] = Counter(scope for run in runs for scope in {scope for scope, _ in run.values()})
    values: dict[tuple[str, str], set[str]] = {}
    having: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for key, (scope, value) in run.items():
            values.setdefault((key, scope), set()).add(value)
            having[key, scope] += 1
    return {key for (key, scope), found in values.items() if len(found) > 1 or having[key, scope] < in_scope[scope]}


def _determines(values: Sequence[Mapping[str, str]], column: str, key: str) -> bool:
    pairs = {(run[column], run[key]) for run in values}
    return len(pairs) == len({first for first, _ in pairs})
