"""metrics.csv of a run folder: tidy rows `step,split,name,value`, always written."""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd.artifacts import write_atomically
from kd.runs.results import check_page

COLUMNS = ("step", "split", "name", "value")


def last_value(folder: str | os.PathLike[str], metric: str) -> float | None:
    """The last logged value of `split/name`, or None if it was never logged; see `logged_values`."""
    values = logged_values(folder, metric)
    return values[-1] if values else None


def logged_values(folder: str | os.PathLike[str], metric: str, since: int = 0) -> list[float]:
    """The values of `split/name` that were logged at step `since` and later, in the order of steps.

    Raises ValueError if the run is DONE and its metrics.csv is not as it was then.
    """
    split, _, name = metric.partition("/")
    path = Path(folder) / "metrics.csv"
    check_page(path.parent, path.name)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [row for row in rows if (row["split"], row["name"]) == (split, name)]
    return [float(row["value"]) for row in found if int(row["step"]) >= since]


class TidyLogger(Logger):
    """Appends every logged number to `<folder>/metrics.csv` as one row, and is readable after each call.

    `train/loss` becomes split `train`, name `loss`; a name without a slash has an empty split. Lightning's
    own `epoch` is left out: the loader is endless, and the step is the position of a run.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        """Empty: the run folder has the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the run folder has the hash."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row per metric and flush.

        Raises:
            ValueError: no step was given.
        """
        if step is None:
            raise ValueError(f"{sorted(metrics)} were logged without a step; pass step=trainer.global_step")
        rows = [(step, *_split(name), repr(float(v))) for name, v in metrics.items() if name != "epoch"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(csv_text(rows) if file.tell() else csv_text([COLUMNS, *rows]))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds them."""

    @rank_zero_only
    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps (and a half-written last row): a resumed run writes them again."""
        if not self.path.exists():
            return
        whole_lines = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = list(csv.reader(whole_lines.split("\n")))[1:]
        write_atomically(self.path, csv_text([COLUMNS, *(row for row in rows if int(row[0]) <= step)]))


def _split(name: str) -> tuple[str, str]:
    split, slash, rest = name.partition("/")
    return (split, rest) if slash else ("", name)


def csv_text(rows: list[Any]) -> str:
    """Rows as the text of a csv file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
