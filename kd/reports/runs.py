"""Finding and reading run folders and the job records of sweeps (`docs/run_folder.md`)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

TIDY = ("run", "config_hash", "seed", "skill", "metric", "system", "value", "n", "low", "high")


@dataclass(frozen=True)
class Job:
    """A run as a report sees it: a job of a sweep, or a run folder by itself.

    `status` is done, skipped, failed, interrupted, waiting or unfinished; `results` is there for the first two.
    """

    label: str
    status: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    seconds: float | None = None
    folder: Path | None = None
    results: Mapping[str, Any] | None = None


def is_sweep(path: Path) -> bool:
    """Whether `path` is a sweep folder."""
    return (path / "jobs").is_dir()


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder, finished or not."""
    return (path / "config.yaml").is_file() or (path / "results.json").is_file()


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
    records = [json.loads(file.read_text(encoding="utf-8")) for file in (path / "jobs").glob("*.json")]
    return [_from_record(record, path) for record in sorted(records, key=lambda record: record["num"])]


def read_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row per finished run × skill × metric × system, with the columns of TIDY.

    Agreement with the teacher is the metrics top1, forward_kl and reverse_kl of the empty skill.
    """
    folders = dict.fromkeys(folder for path in paths for folder in run_folders(path))
    jobs = (_from_folder(folder) for folder in folders)
    rows = [row for job in jobs if job.results is not None for row in _tidy_rows(job.label, job.results)]
    return pd.DataFrame(rows, columns=list(TIDY))


def _tidy_rows(run: str, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for skill, metrics in (*results["scores"].items(), ("", results["agreement"] or {})):
        for metric, systems in metrics.items():
            for system, estimate in systems.items():
                if estimate is not None:
                    who = {"run": run, "config_hash": results["config_hash"], "seed": results["seed"]}
                    yield {**who, "skill": skill, "metric": metric, "system": system, **estimate}


def _from_folder(folder: Path) -> Job:
    results = _results(folder)
    done = (folder / "DONE").exists() and results is not None
    failed = results is not None and results["status"] == "failed"
    return Job(
        label=folder.name,
        status="done" if done else "failed" if failed else "unfinished",
        overrides=_by_key(_yaml_list(folder / "overrides.yaml")),
        reason=results["reason"] if failed and results else None,
        seconds=results["budget"]["seconds"] if done and results else None,
        folder=folder,
        results=results if done else None,
    )


def _from_record(record: Mapping[str, Any], sweep: Path) -> Job:
    folder = None if record["run_folder"] is None else (sweep / record["run_folder"]).resolve()
    finished = record["status"] in ("done", "skipped") and folder is not None
    results = _results(folder) if finished and folder else None
    if results is not None and record.get("omits") is not None:  # skipped: another method's run may have written them
        results["omits"] = record["omits"]
    return Job(
        label=str(record["num"]),
        status=record["status"],
        overrides=_by_key(record["overrides"]),
        reason=record["reason"],
        seconds=record["seconds"],
        folder=folder,
        results=results,
    )


def _results(folder: Path) -> dict[str, Any] | None:
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _yaml_list(path: Path) -> list[str]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.exists() else []


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """`["+a=1", "~b"]` as `{"a": "1", "~b": ""}`."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}
