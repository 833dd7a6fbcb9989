"""Finding and reading run folders and the job records of sweeps (`docs/run_folder.md`)."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kd.runs.job_record import read_record
from kd.runs.results import read_results

TIDY = ("run", "config_hash", "seed", "skill", "metric", "system", "value", "n", "low", "high")


@dataclass(frozen=True)
class Job:
    """A run as a report sees it: a job of a sweep, or a run folder by itself.

    `status` is done, skipped, failed, interrupted, waiting, unfinished or unreadable; `results` is there for the first
    two. `problem` is a sentence on the part that could not be read.
    """

    label: str
    status: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    seconds: float | None = None
    folder: Path | None = None
    results: Mapping[str, Any] | None = None
    problem: str | None = None


def is_sweep(path: Path) -> bool:
    """Return whether `path` is a sweep folder."""
    return (path / "jobs").is_dir()


def is_run(path: Path) -> bool:
    """Return whether `path` is a run folder, finished or not."""
    return any((path / name).is_file() for name in ("config.yaml", "results.json", "DONE"))


def run_folders(path: str | PathLike[str]) -> list[Path]:
    """The run folders that `path` stands for: itself, those of a sweep, or the children of a root.

    Folders that were set aside (`….old-1`) count only when named themselves.

    Raises:
        FileNotFoundError: there is no run folder.
    """
    path = Path(path)
    if is_run(path):
        return [path]
    if is_sweep(path):
        return [job.folder for job in read_jobs(path) if job.folder is not None]
    children = sorted(path.iterdir()) if path.is_dir() else []
    found = [child for child in children if is_run(child) and not re.search(r"\.old-\d+$", child.name)]
    if not found:
        raise FileNotFoundError(f"{path} holds no run folder; name a run, a sweep or the folder above runs")
    return found


def read_jobs(path: str | PathLike[str]) -> list[Job]:
    """The jobs of a sweep folder in their order, or the runs that `path` stands for."""
    path = Path(path)
    if is_run(path) or not is_sweep(path):
        return [_from_folder(folder) for folder in run_folders(path)]
    files = sorted((path / "jobs").glob("*.json"), key=lambda file: (len(file.name), file.name))  # 2 before 10
    return [_from_record(file, path) for file in files]


def read_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row per finished run × skill × metric × system, with the columns of TIDY.

    Agreement with the teacher is the metrics top1, forward_kl and reverse_kl of the empty skill.
    """
    folders = dict.fromkeys(folder for path in paths for folder in run_folders(path))
    jobs = [_from_folder(folder) for folder in folders]
    for problem in problems(jobs):
        warnings.warn(problem, stacklevel=2)
    return tidy(jobs)


def tidy(jobs: Iterable[Job]) -> pd.DataFrame:
    """The frame of `read_runs` from what was read, each run once."""
    finished = {job.folder: job.results for job in jobs if job.folder is not None and job.results is not None}
    rows = [row for folder, results in finished.items() for row in _tidy_rows(folder.name, results)]
    return pd.DataFrame(rows, columns=list(TIDY))


def problems(jobs: Iterable[Job]) -> list[str]:
    """A sentence for each run or job of which something could not be read."""
    return [f"Not read: {job.problem}." for job in jobs if job.problem is not None]


def _tidy_rows(run: str, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for skill, metrics in (*results["scores"].items(), ("", results["agreement"] or {})):
        for metric, systems in metrics.items():
            for system, estimate in systems.items():
                if estimate is not None:
                    found = {"run": run, "config_hash": results["config_hash"], "seed": results["seed"]}
                    yield {**found, "skill": skill, "metric": metric, "system": system, **estimate}


def _from_folder(folder: Path) -> Job:
    results, problem = None, None
    done = (folder / "DONE").exists()
    if done or (folder / "results.json").exists():
        results, problem = _read(read_results, folder)
    overrides, unreadable = _read(_overrides, folder)
    failed = results is not None and results["status"] == "failed"
    finished = done and results is not None and not failed
    status = "done" if finished else "failed" if failed else "unreadable" if problem else "unfinished"
    return Job(
        label=folder.name,
        status=status,
        overrides=_by_key(overrides or []),
        reason=results["reason"] if failed and results else None,
        seconds=results["budget"]["seconds"] if finished and results else None,
        folder=folder,
        results=results if finished else None,
        problem=problem or unreadable,
    )


def _from_record(file: Path, sweep: Path) -> Job:
    record, problem = _read(read_record, file)
    if record is None:
        return Job(label=file.stem, status="unreadable", problem=problem)
    folder = None if record["run_folder"] is None else (sweep / record["run_folder"]).resolve()
    finished = record["status"] in ("done", "skipped") and folder is not None
    results, problem = _read(read_results, folder) if finished and folder else (None, None)
    if results is not None and record["omits"] is not None:  # skipped: another method's run may have written them
        results["omits"] = record["omits"]
    return Job(
        label=str(record["num"]),
        status="unreadable" if problem else record["status"],
        overrides=_by_key(record["overrides"]),
        reason=record["reason"],
        seconds=record["seconds"],
        folder=folder,
        results=results,
        problem=problem,
    )


def _read(reader: Callable[[Path], Any], path: Path) -> tuple[Any, str | None]:
    """The value of `reader` and None, or None and the reason why there is none."""
    try:
        return reader(path), None
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())


def _overrides(folder: Path) -> list[str]:
    path = folder / "overrides.yaml"
    try:
        found = (yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.exists() else []
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is torn ({error})") from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{path} is torn: it is no list of overrides")
    return found


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """`["+a=1", "~b"]` as `{"a": "1", "~b": ""}`."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}
