"""The metrics of a run folder by step, in the rows that W&B records."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from kd.runs.results import check_page


def logged(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, `split/name` -> value) of each step of metrics.csv, in the order in which they were logged.

    Raises ValueError if the file is torn, or the run is DONE and it is not as it was then.
    """
    path = folder / "metrics.csv"
    check_page(folder, path.name)
    rows: dict[int, dict[str, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for step, split, name, value in islice(csv.reader(lines), 1, None):
            rows.setdefault(int(step), {})[f"{split}/{name}" if split else name] = float(value)
    except ValueError as error:
        raise ValueError(f"{path} is torn ({error})") from None
    yield from rows.items()
