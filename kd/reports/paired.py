"""Differences between arms on the same items and seeds, from `items.csv` of their run folders."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from kd.reports.crossed import Difference, crossed, linearised, over_seeds_alone
from kd.reports.frame import Arm, Frame
from kd.reports.settings import TRAINED_ON
from kd.runs.results import check_page


@lru_cache(maxsize=512)
def item_table(folder: Path) -> Mapping[tuple[str, str, str], pd.DataFrame]:
    """The rows of a run's items.csv by (skill, system, metric), with the id as index.

    Raises ValueError if the file is not as it was when the run ended, or torn.
    """
    path = folder / "items.csv"
    check_page(folder, path.name)
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, dtype={"id": str, "group": str, "statistics": str, "variant": str})
        table = table[table["variant"].isna()] if "variant" in table else table  # the items as they are
        parts = table.groupby(["skill", "system", "metric"], sort=False)
        return {(str(s), str(y), str(m)): part.set_index("id") for (s, y, m), part in parts}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is torn ({error})") from None


def difference(one: Arm, other: Arm, skill: str, metric: str, system: str = "after") -> Difference | None:
    """`one` less `other`, over the seeds that both have and the items of all of these; None where there are none.

    Of metrics of the whole corpus, and of runs without items.csv, seeds alone are compared.
    """
    seeds = sorted(one.estimates(skill, metric, system).keys() & other.estimates(skill, metric, system).keys())
    if not seeds:
        return None
    low, high = one.metric(metric).bounds
    pairs = [tuple(_items(arm, seed, skill, metric, system) for arm in (one, other)) for seed in seeds]
    if all(table is not None for pair in pairs for table in pair):
        found = _paired([(a, b) for a, b in pairs if a is not None and b is not None], high - low)
        if found is not None:
            return found
    values = [arm.estimates(skill, metric, system) for arm in (one, other)]
    return over_seeds_alone([values[0][s]["value"] - values[1][s]["value"] for s in seeds], width=high - low)


def _items(arm: Arm, seed: int, skill: str, metric: str, system: str) -> pd.DataFrame | None:
    folder = arm.runs[seed].folder
    return None if folder is None else item_table(folder).get((skill, system, metric))


def _paired(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], width: float) -> Difference | None:
    """None where no item is in all tables, or the score is no mean and no ratio of sums."""
    ids = pairs[0][0].index
    for table in (table for pair in pairs for table in pair):
        ids = ids[ids.isin(table.index)]
    rows = [[_values(table.loc[ids]) for table in pair] for pair in pairs]
    if not len(ids) or any(values is None for row in rows for values in row):
        return None
    groups = pairs[0][0].loc[ids, "group"].astype(object)
    names = groups.where(groups.notna(), None).tolist()
    return crossed(np.stack([one - other for one, other in rows]), names, width=width)  # type: ignore[operator]


def _values(table: pd.DataFrame) -> np.ndarray | None:
    """A value for each item, whose mean is the score."""
    rows = [] if table["statistics"].isna().all() else [json.loads(text) for text in table["statistics"]]
    if all(one is None or isinstance(one, str) for row in rows for one in row):  # none, or verdicts of a judge
        values = table["value"].to_numpy(dtype=float)
        return values if np.isfinite(values).all() else None
    if any(len(row) != 2 or isinstance(row[0], list) for row in rows):
        return None
    above, below = np.array(rows, dtype=float).T
    return linearised(above, below)


# --- the baseline of an arm ---


def beside(frame: Frame) -> dict[int, Arm]:
    """For each arm, by its place, the arm of the runs beside its own (`compare`), where they are in the frame."""
    by_hash = {(job.results or {}).get("config_hash"): arm for arm in frame.arms for job in arm.runs.values()}
    found: dict[int, Arm] = {}
    for i, arm in enumerate(frame.arms):
        hashes = [results.get("baseline") for results in arm.results()]
        named = [None if digest is None else by_hash.get(digest) for digest in hashes]
        if named and named[0] is not None and all(other is named[0] for other in named):
            found[i] = named[0]
    return found


def chosen(frame: Frame, wanted: Mapping[str, str]) -> dict[int, Arm]:
    """For each arm the one that has the `wanted` settings, and agrees with it in most others.

    Raises ValueError where no arm has them, a column is unknown, or two arms fit alike.
    """
    names = {_column(frame, name): value for name, value in wanted.items()}
    fitting = [arm for arm in frame.arms if all(arm.values[name] == value for name, value in names.items())]
    text = ",".join(f"{name}={value}" for name, value in wanted.items())
    if not fitting:
        have = "; ".join(f"{name}: {', '.join(sorted({arm.values[name] for arm in frame.arms}))}" for name in names)
        raise ValueError(f"--baseline {text}: no run has these settings; there are {have}")
    found: dict[int, Arm] = {}
    for i, arm in enumerate(frame.arms):
        if arm in fitting:
            continue
        same = [other for other in fitting if other.skill == arm.skill]
        alike = {id(other): _alike(arm, other) for other in same}
        best = [other for other in same if alike[id(other)] == max(alike.values())]
        if len(best) > 1:
            raise ValueError(f"--baseline {text}: {len(best)} arms fit {arm.label} alike; name more settings")
        found |= {i: best[0]} if best else {}
    return found


def _alike(one: Arm, other: Arm) -> int:
    return sum(other.values[name] == value for name, value in one.values.items())


def _column(frame: Frame, name: str) -> str:
    """A column by the name that a user gives it.

    Raises ValueError where there is none of that name.
    """
    name = TRAINED_ON if name == "skill" and TRAINED_ON in frame.columns else name
    if name not in frame.columns:
        known = ", ".join(frame.columns) or "none"
        raise ValueError(f"the runs do not differ in {name}; settings in which they differ: {known}")
    return name


def parsed(text: str) -> dict[str, str]:
    """`objective=sft,optim.lr=0.01` as a mapping. Raises ValueError for another form."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise ValueError(f"--baseline {text}: give it as KEY=VALUE, as in --baseline objective=sft")
    return {name: value for name, _, value in pairs}
