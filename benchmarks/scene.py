"""The surroundings of a section of `benchmarks.gpu`: device, shapes, time that is left, and the file of rows."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Section = Callable[["Scene"], Iterable[Row]]
NO_TIME = "no time left in this section"
LEAST = 2.0  # seconds, below which nothing new is begun


@dataclass(frozen=True)
class Scene:
    """Where a section writes, on which device it computes, and until when (of `time.monotonic`)."""

    out: Path
    device: str
    tiny: bool = False
    ends: float = float("inf")

    @property
    def path(self) -> Path:
        """The file of rows, one JSON object in a line."""
        return self.out / "rows.jsonl"

    def until(self, seconds: float) -> "Scene":
        """The same with so much time from now on."""
        return replace(self, ends=time.monotonic() + seconds)

    def write(self, row: Row) -> None:
        """Append a row by one write, and have it on the disk before anything else happens."""
        line = (json.dumps(row) + "\n").encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
            os.fsync(file)
        finally:
            os.close(file)

    def rows(self) -> list[Row]:
        """All whole rows so far."""
        found = list[Row]()
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with suppress(json.JSONDecodeError):  # the last one, of a process that was killed
                found.append(json.loads(line))
        return found

    def limit(self, name: str) -> float | None:
        """The machine's limit that the section `limits` measured, in FLOP/s or bytes/s; None where it did not."""
        rates = [
            row["rate"] for row in self.rows() if row["section"] == "limits" and row["case"] == name and "rate" in row
        ]
        return max(rates, default=None)

    def measure(self, section: str, rows: Section) -> None:
        """Write all rows of a section, each as it comes; an error is the last row."""
        try:
            for row in rows(self):
                self.write({"section": section, **row})
        except Exception as error:
            self.write({"section": section, "case": "", "failed": one_line(error), "traceback": traceback.format_exc()})

    def attempt(self, case: str, by: str, run: Callable[[], Mapping[str, Any]]) -> Row:
        """The row of one measurement, or of the reason why there is none."""
        row = {"case": case, "by": by}
        if self.ends - time.monotonic() < LEAST:
            return {**row, "skipped": NO_TIME}
        try:
            return {**row, **run()}
        except ImportError as missing:
            return {**row, "skipped": f"{missing.name or missing} is not installed"}
        except torch.OutOfMemoryError:
            return {**row, "failed": "out of the device's memory"}
        except Exception as error:
            return {**row, "failed": one_line(error), "traceback": traceback.format_exc()}
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()


def share(least: float, seconds: float, limit: float | None) -> float | None:
    """The part of the machine's limit at which `least` (FLOP or bytes) was done."""
    return None if limit is None else least / seconds / limit


def one_line(error: BaseException) -> str:
    """The error's kind and text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
