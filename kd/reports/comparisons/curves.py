"""The metrics that runs logged by step: of each run, and of an arm as the mean over seeds with its interval."""

import csv
import re
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import pandas as pd
from scipy import stats

from kd.reports.frame import Arm
from kd.reports.runs import Job
from kd.runs.results import check_page

PANELS = 12  # at most
FIRST = ("validation/bits_per_byte", "validation/forward_kl", "validation/reverse_kl", "train/loss")  # after tasks'
THEN = (  # after the weights and the values of terms
    *("train/generation_share", "train/truncation_rate", "train/response_length"),
    *("train/reward_student", "train/grad_norm", "train/lr"),
)
NO_TASKS = ("train", "validation", "audit")  # splits that are no skill
BANDS = (
    "Lines: means over seeds. Bands: 95 % t intervals over seeds at each step, on the plain scale; none of one seed."
)


def logged(job: Job) -> dict[str, dict[int, float]]:
    """`split/name` -> the value by step, of a run that is finished or not; empty without metrics.csv.

    Raises ValueError if the file is torn, or the run is DONE and it is not as it was then.
    """
    if job.folder is None or not (path := job.folder / "metrics.csv").exists():
        return {}
    check_page(job.folder, path.name)
    found: dict[str, dict[int, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].split("\n")  # the last row may be incomplete
        for step, split, name, value in islice(csv.reader(lines), 1, None):
            found.setdefault(f"{split}/{name}".removeprefix("/"), {})[int(step)] = float(value)
    except ValueError as error:
        raise ValueError(f"{path} is torn ({error})") from None
    return found


def series(arm: Arm) -> dict[str, pd.DataFrame]:
    """`split/name` -> a frame [steps, seeds] of the values that the arm's runs logged."""
    tables: dict[str, dict[int, pd.Series]] = {}
    for seed, job in arm.runs.items():
        for name, values in logged(job).items():
            tables.setdefault(name, {})[seed] = pd.Series(values)
    return {name: pd.DataFrame(columns).sort_index() for name, columns in tables.items()}


def terms_of(arms: Sequence[Arm]) -> list[str]:
    """The terms of the objectives that have several: of one alone, the loss is its value."""
    objectives = [next(iter(arm.runs.values())).config.get("objective") or {} for arm in arms]
    return list(dict.fromkeys(name for terms in objectives if len(terms) > 1 for name in terms))


def of_task(name: str) -> bool:
    """Return whether `split/name` is a score on a skill; a name without a split is none."""
    split, slash, _ = name.partition("/")
    return bool(slash) and split not in NO_TASKS


def shown(logged: Mapping[str, Mapping[str, pd.DataFrame]], terms: Sequence[str] = ()) -> list[str]:
    """The metrics to draw, in their order: scores of tasks, FIRST, weights and values of terms, THEN, their entropies.

    Each has two steps at least in some arm.
    """
    names = dict.fromkeys(name for one in logged.values() for name, table in one.items() if len(table) > 1)
    tasks = [name for name in names if of_task(name)]
    weights = [name for name in names if re.fullmatch(r"train/[^/]+_weight", name)]
    values = [f"train/{term}" for term in terms]
    entropies = [name for name in names if re.fullmatch(r"train/.+/entropy", name)]
    return [name for name in (*tasks, *FIRST, *weights, *values, *THEN, *entropies) if name in names]


def band(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds at each step, and half the width of its 95 % t interval; NaN of one seed."""
    count = table.notna().sum(axis=1).to_numpy()
    spread = table.std(axis=1, ddof=1).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * spread / np.sqrt(count)
    return table.mean(axis=1).to_numpy(), np.where(count > 1, half, np.nan)
