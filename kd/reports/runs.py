"""Finding and reading run folders and the job records of sweeps (`docs/run_folder.md`)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from kd.runs.composed import LOADER, read_config
from kd.runs.job_record import read_record
from kd.runs.results import read_results


@dataclass(frozen=True)
class Job:
    """A run as a report sees it: a job of a sweep, or a run folder by itself.

    `status` is done, skipped, failed, interrupted, waiting, unfinished or unreadable; `results` is there for the first
    two. `problem` is a sentence on the part that could not be read, `config` the composed config by section.
    """

    label: str
    status: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    seconds: float | None = None
    folder: Path | None = None
    results: Mapping[str, Any] | None = None
    problem: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


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
        return [read_folder(folder) for folder in run_folders(path)]
    files = sorted((path / "jobs").glob("*.json"), key=lambda file: (len(file.name), file.name))  # 2 before 10
    return [_from_record(file, path) for file in files]


def problems(jobs: Iterable[Job]) -> list[str]:
    """A sentence for each run or job of which something could not be read."""
    return [f"Not read: {job.problem}." for job in jobs if job.problem is not None]


def read_folder(folder: Path) -> Job:
    """The run of a folder, finished or not, whatever of it can be read."""
    results, problem = None, None
    done = (folder / "DONE").exists()
    if done or (folder / "results.json").exists():
        results, problem = _read(read_results, folder)
    overrides, unreadable = _read(_overrides, folder)
    config, torn = _read(read_config, folder) if (folder / "config.yaml").exists() else ({}, None)
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
        problem=problem or unreadable or torn,
        config=config or {},
    )


def _from_record(file: Path, sweep: Path) -> Job:
    record, problem = _read(read_record, file)
    if record is None:
        return Job(label=file.stem, status="unreadable", problem=problem)
    folder = None if record["run_folder"] is None else (sweep / record["run_folder"]).resolve()
    finished = record["status"] in ("done", "skipped") and folder is not None
    results, problem = _read(read_results, folder) if finished and folder else (None, None)
    composed = folder is not None and (folder / "config.yaml").exists()
    config, torn = _read(read_config, folder) if composed and folder else ({}, None)
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
        problem=problem or torn,
        config=config or {},
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
        found = (yaml.load(path.read_text(encoding="utf-8"), LOADER) or []) if path.exists() else []
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is torn ({error})") from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{path} is torn: it is no list of overrides")
    return found


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """`["+a=1", "~b"]` as `{"a": "1", "~b": ""}`."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}
