"""The offline records of W&B, read back with its own inspector."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

TABLE = "._type"  # the end of a table's entry in history and summary


@dataclass
class Record:
    """The content of one `.wandb` file; tables are in history and summary by their names alone."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)  # by name, the paths in them
    exit_code: int | None = None

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        found = json.loads((self.folder / "files" / self.summary[f"{name}.path"]).read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]

    def take(self, kind: str, entry: dict[str, Any]) -> None:
        """Take in one entry of the file."""
        if kind == "run":
            self.id, self.name = entry["run_id"], entry["display_name"]
            self.group, self.job_type = entry.get("run_group", ""), entry.get("job_type", "")
            self.tags = entry.get("tags", [])
            self.config |= entry.get("config", {}).get("update", {})
        elif kind == "history":
            self.history.append(_with_tables(entry["item"]))
        elif kind == "summary":
            self.summary |= _with_tables(entry.get("update", {}))
        elif kind == "artifact" and entry["type"] == "run":
            self.artifacts[entry["name"]] = [one["path"] for one in entry["manifest"]["contents"]]
        elif kind == "exit":
            self.exit_code = entry["exit_code"]


def _with_tables(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {key.removesuffix(TABLE): value for key, value in entry.items() if key.endswith(TABLE)}


def records_of(run: Path) -> list[Record]:
    """The offline records in a run folder, in the order in which they were begun."""
    found = []
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        (file,) = folder.glob("*.wandb")
        where = ["--run-file", str(file.resolve()), str(folder.parent.resolve())]
        read = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *where]
        record = Record(folder)
        for line in subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines():
            entry = json.loads(line)
            record.take(entry["type"], entry.get(entry["type"], {}))
        found.append(record)
    return found
