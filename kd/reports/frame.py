"""The data model of all reports: arms, the runs that differ in their seed alone, and the tidy frame of their scores."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kd.artifacts import key
from kd.metrics.table import Metric, of_results
from kd.reports.runs import Job, problems, read_folder, run_folders
from kd.reports.settings import TRAINED_ON, settings_of

Estimate = Mapping[str, Any]
IDENTITY = "identity"  # tells arms apart whose data, models or versions differ, and no setting
TIDY = ("run", "config_hash", "seed", "skill", "metric", "system", "value", "n", "low", "high")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone.

    Attributes:
        values: the settings that tell it from the other arms, by column.
        runs: by seed.
    """

    values: Mapping[str, str]
    runs: Mapping[int, Job]

    @property
    def label(self) -> str:
        """Its settings in one line, without the skill: `fkl`, or `objective=fkl, optim.lr=0.01`."""
        return self.without(TRAINED_ON)

    def without(self, *columns: str) -> str:
        """Its settings in one line, without some columns."""
        shown = {name: value for name, value in self.values.items() if name not in columns}
        return next(iter(shown.values())) if len(shown) == 1 else ", ".join(f"{k}={v}" for k, v in shown.items())

    @property
    def skill(self) -> str:
        """The skill that the runs were trained on."""
        return next(iter(self.skills), "")

    @property
    def skills(self) -> list[str]:
        """All evaluated skills, the own one first."""
        return list(dict.fromkeys(skill for results in self.results() for skill in results["scores"]))

    @property
    def items(self) -> str:
        """Digests of the items that its runs were evaluated on."""
        return ", ".join(sorted({results["digests"]["evaluation_items"] for results in self.results()}))

    def results(self) -> list[Mapping[str, Any]]:
        """The content of results.json of each run, by seed."""
        return [job.results for job in self.runs.values() if job.results is not None]

    def metric(self, name: str) -> Metric:
        """The facts of a metric."""
        having = (results for results in self.results() if name in (results.get("metrics") or {}))
        return of_results(next(having, {}), name)

    def headline(self, skill: str) -> str | None:
        """The first metric of a skill's answers; where nothing was answered, the first of all."""
        names = dict.fromkeys(name for results in self.results() for name in results["scores"].get(skill, {}))
        return next(iter([*(name for name in names if self.metric(name).of == "answers"), *names]), None)

    def estimates(self, skill: str, metric: str, system: str = "after") -> dict[int, Estimate]:
        """The estimates by seed; runs in which the system was not measured are left out."""
        found = {}
        for seed, job in self.runs.items():
            one = systems(job.results or {}, skill, metric).get(system)
            if one is not None and one["value"] is not None:
                found[seed] = one
        return found


@dataclass(frozen=True)
class Frame:
    """All that reports read, once.

    Attributes:
        jobs: the jobs or runs that were named, finished or not.
        columns: the settings in which the arms differ.
        arms: of all finished runs, those beside them (`compare`) among them.
        notes: sentences on what the frame leaves out or holds together.
    """

    jobs: Sequence[Job]
    columns: Sequence[str]
    arms: Sequence[Arm]
    notes: Sequence[str] = field(default=())

    @property
    def skills(self) -> list[str]:
        """The skills that arms were trained on."""
        return list(dict.fromkeys(arm.skill for arm in self.arms))

    def comparable(self, arms: Iterable[Arm]) -> list[list[Arm]]:
        """Arms of one skill in groups of the same evaluated items, by which alone they can be ranked.

        They are one group where no arms of the same settings differ in their identity: digests of items are made
        of tokens, so that students with other tokenizers have others.
        """
        groups: dict[str, list[Arm]] = {}
        for arm in arms:
            groups.setdefault(arm.items if IDENTITY in self.columns else "", []).append(arm)
        return list(groups.values())

    def arm_of(self, folder: Path | None) -> Arm | None:
        """The arm that holds the run of a folder."""
        return next((arm for arm in self.arms if any(job.folder == folder for job in arm.runs.values())), None)

    def tidy(self) -> pd.DataFrame:
        """One row per run × skill × metric × system, with the settings in which runs differ between seed and skill."""
        columns = [*TIDY[:3], *self.columns, *TIDY[3:]]
        rows = [row for arm in self.arms for job in arm.runs.values() for row in _rows(job, arm, self.columns)]
        return pd.DataFrame(rows, columns=columns)


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> pd.DataFrame:
    """The tidy frame of the finished runs that the paths stand for, each once.

    A run that cannot be read causes a warning. Agreement with the teacher is the metrics top1, forward_kl and
    reverse_kl of the empty skill.
    """
    folders = dict.fromkeys(folder for path in paths for folder in run_folders(path))
    jobs = [read_folder(folder) for folder in folders]
    for problem in problems(jobs):
        warnings.warn(problem, stacklevel=2)
    return frame_of(jobs, beside=False).tidy()


def frame_of(jobs: Sequence[Job], *, beside: bool = True) -> Frame:
    """The frame of jobs that were read; `beside`: with the baselines of their runs, where these can be read."""
    finished, notes = _once([job for job in jobs if job.results is not None])
    found = [*finished, *(_baselines(finished) if beside else ())]
    settings = settings_of(found)
    rows: dict[tuple[str, ...], list[tuple[Job, Mapping[str, str]]]] = {}
    for job, values in zip(found, settings.values, strict=True):
        rows.setdefault((*(values[name] for name in settings.columns), _content(job)), []).append((job, values))
    plain = Counter(group[:-1] for group in rows)
    tied = any(count > 1 for count in plain.values())
    columns = [*settings.columns, *([IDENTITY] if tied else [])]
    arms = []
    for group, members in rows.items():
        runs: dict[int, Job] = {}
        for job, _ in sorted(members, key=lambda member: str(member[0].folder)):
            seed = (job.results or {})["seed"]
            if seed in runs:
                notes.append(f"{job.label} and {runs[seed].label} have the same settings and seed; the second counts.")
            runs.setdefault(seed, job)
        values = {name: members[0][1][name] for name in settings.columns}
        arms.append(Arm(values | ({IDENTITY: group[-1][:6]} if tied else {}), dict(sorted(runs.items()))))
    arms.sort(key=lambda arm: [_ordered(arm.values[name]) for name in columns])
    notes += [f"With {name} differ, too: {', '.join(others)}." for name, others in settings.along.items()]
    return Frame(jobs, columns, arms, notes)


def systems(results: Mapping[str, Any], skill: str, metric: str) -> Mapping[str, Estimate | None]:
    """The estimates of a metric by system; agreement with the teacher is that of the run's own skill."""
    own = next(iter(results.get("scores", ())), None)
    if skill in (own, "") and metric in (results.get("agreement") or {}):
        return results["agreement"][metric]
    return results.get("scores", {}).get(skill, {}).get(metric, {})


def identity(job: Job) -> str | int:
    """The folder of a job's run, however it was named; a number for a job without one."""
    return os.path.abspath(job.folder) if job.folder else id(job)


def _ordered(value: str) -> tuple[float, str]:
    """A key of order: numbers by their size, and before texts."""
    try:
        number = float(value)
    except ValueError:
        return math.inf, value
    return (math.inf if math.isnan(number) else number), value


def _content(job: Job) -> str:
    """What runs of one mean share: their family, and the versions of their components."""
    results = job.results or {}
    return key({"family": results.get("family"), "versions": results.get("versions") or {}})


def _once(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """Each run once, and a sentence on the folders that hold copies of others."""
    found: dict[Any, Job] = {}
    copies = []
    for job in jobs:
        digest = (job.results or {}).get("config_hash"), str((job.results or {}).get("digests"))
        other = found.setdefault(digest if job.config else identity(job), job)
        if identity(other) != identity(job):
            copies.append(f"{job.folder} of {other.folder}")
    text = f"{len(copies)} folders hold copies of other runs, which count once: {copies[0]}" if copies else ""
    return list(found.values()), [f"{text}{', …' if len(copies) > 1 else ''}."] if copies else []


def _baselines(jobs: Sequence[Job]) -> Iterator[Job]:
    """The runs beside `jobs`, by the hash in their results, which lie in the same folder."""
    known = {(job.results or {}).get("config_hash") for job in jobs}
    names: dict[Path, dict[str, str]] = {}
    for job in jobs:
        digest = (job.results or {}).get("baseline")
        if digest is None or digest in known or job.folder is None:
            continue
        known.add(digest)
        root = job.folder.parent
        if root not in names:
            names[root] = {name[-12:]: name for name in os.listdir(root) if re.search(r"-[0-9a-f]{12}$", name)}
        if digest in names[root]:
            other = read_folder(root / names[root][digest])
            if other.results is not None:
                yield other


def _rows(job: Job, arm: Arm, columns: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    results = job.results or {}
    run = job.folder.name if job.folder else job.label
    start = (run, results["config_hash"], results["seed"], *(arm.values[name] for name in columns))
    pages = (*results["scores"].items(), ("", results["agreement"] or {}))
    for skill, metrics in pages:
        for metric, found in metrics.items():
            for system, one in found.items():
                if one is not None:
                    yield (*start, skill, metric, system, one["value"], one["n"], one["low"], one["high"])


def seeds_text(arms: Iterable[Arm]) -> str:
    """The seeds of arms in words: `Seeds 1, 2, 3`, or `1 to 3 seeds each`."""
    found = list(dict.fromkeys(tuple(arm.runs) for arm in arms))
    if len(found) == 1:
        return f"{'Seed' if len(found[0]) == 1 else 'Seeds'} {', '.join(map(str, found[0]))}"
    counts = sorted({len(seeds) for seeds in found})
    return f"{counts[0]} to {counts[-1]} seeds each" if len(counts) > 1 else f"{counts[0]} seeds each"
