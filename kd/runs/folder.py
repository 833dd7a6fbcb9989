"""The run folder: the contract between training and everything that reads it (`docs/run_folder.md`).

A run writes into `<root>/<name>-<hash>/`, one process at a time, every file whole or not at all, and the
marker `DONE` last.
"""

import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from kd.artifacts import file_sha256, key, write_atomically
from kd.locks import locked
from kd.runs.results import Failure, finite, read_results, validated
from kd.versions import code_digest

# Where, how fast and how a run is recorded, not what it computes; dots lead into groups.
NOT_HASHED = ("hydra", "logger", "run", "name", "log_every", "data.workers", "omits", "paper")
BY_CONTENT = (".bad_rows",)  # of a skill, whose records count
ENGINE = ("generator.url", "generator.weights", "generator.timeout", "generator.transfer")  # of each generator
RECORDED = ("metrics.csv", "samples.jsonl", "items.csv", "positions.csv", "verdicts.jsonl")  # by sha256, in DONE
PACKAGES = ("kd", "torch", "lightning", "transformers", "tokenizers", "hydra-core", "omegaconf", "numpy")


def config_hash(config: Mapping[str, Any], *, digests: Mapping[str, str], version: Mapping[str, int | str]) -> str:
    """12 hex digits over the resolved config without NOT_HASHED, ENGINE and BY_CONTENT, the digests and the versions.

    Args:
        config: the composed config as plain, resolved containers.
        digests: content hashes of models and data, by name.
        version: the versions of the code.

    Raises:
        ValueError: the config holds a value that json has no form for.
    """
    content = {"config": _hashed_part(config), "digests": dict(digests), "version": dict(version)}
    return key(content)[:12]


def _hashed_part(config: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    return {
        key: _hashed_part(value, f"{inside}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{inside}{key}" not in NOT_HASHED and not f"{inside}{key}".endswith((*ENGINE, *BY_CONTENT))
    }


class RunFolder:
    """One run's folder. Nothing is created before `start`; hold `lock` while writing."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def of(cls, root: str | os.PathLike[str], name: str, digest: str) -> "RunFolder":
        """`<root>/<name>-<digest>`, where `digest` comes from `config_hash`.

        Raises:
            ValueError: the name would leave the root or be hidden.
        """
        if not name or name.startswith(".") or "/" in name or os.sep in name:
            raise ValueError(f"run.name={name!r} cannot name a folder; choose one without '/' or a leading '.'")
        return cls(Path(root) / f"{name}-{digest}")

    @property
    def config_hash(self) -> str:
        """The hash in the folder's name; empty where there is none."""
        found = re.search(r"-([0-9a-f]{12})$", self.path.name)
        return found[1] if found else ""

    @property
    def old_runs(self) -> int:
        """The number of folders of this name that were set aside: the N of the last `.old-N`."""
        return next(n for n in itertools.count() if not self._old(n + 1).exists())

    @property
    def done(self) -> bool:
        """True if the run reached its end: `DONE` is the last file written."""
        return (self.path / "DONE").exists()

    @property
    def readable(self) -> bool:
        """True if the results can be read."""
        try:
            self.results()
        except ValueError:
            return False
        return True

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def results(self) -> dict[str, Any]:
        """The content of results.json. Raises ValueError as `kd.runs.results.read_results`."""
        return read_results(self.path)

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Keep every other process out of this folder; with `wait`, once the one inside has left.

        The lock lies beside the folder, so that it survives `set_aside`, and ends with the process.

        Raises:
            BlockingIOError: another process holds it; names the folder, the holder and the remedy.
        """
        with locked(self.path, wait=wait):
            yield

    def set_aside(self) -> Path | None:
        """Rename the folder to the first free `<name>-<hash>.old-N` and return that; never deletes."""
        if not self.path.exists():
            return None
        old = self._old(self.old_runs + 1)
        os.rename(self.path, old)
        return old

    def _old(self, number: int) -> Path:
        return Path(f"{self.path}.old-{number}")

    def write_text(self, name: str, text: str) -> Path:
        """Write one file of the folder atomically."""
        write_atomically(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write one json file atomically; non-finite numbers become null."""
        return self.write_text(name, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")

    def write_samples(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write samples.jsonl: one generated answer per line, with its prompt and score."""
        return self._write_rows("samples.jsonl", rows)

    def write_verdicts(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write verdicts.jsonl: one reply of a judge per line, with the verdict that was read from it."""
        return self._write_rows("verdicts.jsonl", rows)

    def _write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        lines = [json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) for row in rows]
        return self.write_text(name, "".join(line + "\n" for line in lines))

    def write_items(self, table: str) -> Path:
        """Write items.csv: one row for each item, system and metric (`kd.evaluation.items`)."""
        return self.write_text("items.csv", table)

    def write_positions(self, table: str) -> Path:
        """Write positions.csv: divergence by position (`kd.runs.positions`)."""
        return self.write_text("positions.csv", table)

    def start(self, config_yaml: str, overrides: Sequence[str]) -> None:
        """Create the folder, or go on in one that was interrupted, and describe the run in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in (*self.path.glob(".*.tmp"), self.path / "results.json", self.path / "traceback.txt"):
            stale.unlink(missing_ok=True)  # of an attempt that failed or was killed while writing
        self.write_text("config.yaml", config_yaml)
        self.write_text("overrides.yaml", "".join(f"- {json.dumps(item)}\n" for item in overrides) or "[]\n")
        self.write_json("environment.json", environment())

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Validate and write results.json, then DONE. Fills in `schema_version`, `status`, `config_hash`.

        Raises:
            ValueError: names the first field that does not fit the schema (`kd.runs.results.Results`).
        """
        page = validated({"config_hash": self.config_hash, **results})
        if page["config_hash"] != self.config_hash:
            raise ValueError(f"results.json: config_hash {page['config_hash']} is not that of {self.path.name}")
        self.write_json("results.json", page)
        others = [path for name in RECORDED if (path := self.path / name).is_file()]
        lines = [self.config_hash, file_sha256(self.path / "results.json")]
        self.write_text("DONE", "\n".join([*lines, *(f"{file_sha256(path)}  {path.name}" for path in others)]) + "\n")
        return page

    def fail(self, reason: str, traceback: str) -> None:
        """Record why there will be no results: results.json with status 'failed', traceback.txt, no DONE."""
        self.write_text("traceback.txt", traceback)
        self.write_json("results.json", Failure(config_hash=self.config_hash, reason=reason).model_dump())


def environment() -> dict[str, Any]:
    """Versions, git state of the checkout that `kd` lies in, device and threads."""
    import torch  # only here: reading run folders does without it

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).resolve().parent),
        "code": code_digest(),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "device_count": torch.cuda.device_count() if cuda else 1,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """`{"commit", "dirty"}` of the checkout that holds the files of `folder`, or None where none does.

    A package that is installed inside another project's checkout (its `.venv`) is not part of it.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([git, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)

    commit, changes, files = run("rev-parse", "HEAD"), run("status", "--porcelain"), run("ls-files", ".")
    if commit.returncode or changes.returncode or not files.stdout:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}
