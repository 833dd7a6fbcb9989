"""Differences between arms on the same items and seeds, from `items.csv` of their run folders."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kd.reports.crossed import Difference, crossed, linearised, over_seeds_alone
from kd.reports.frame import Arm, Estimate, Frame
from kd.reports.settings import TRAINED_ON
from kd.runs.results import check_page

Table = tuple[np.ndarray, Sequence[str | None]]  # differences [seeds, items], groups of the items


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


class Side(NamedTuple):
    """The scores of a system of an arm, by one metric on one skill."""

    arm: Arm
    skill: str
    metric: str
    system: str = "after"

    @property
    def seeds(self) -> set[int]:
        """The seeds with a score."""
        return set(self.estimates())

    def estimates(self) -> dict[int, Estimate]:
        """Its estimates by seed."""
        return self.arm.estimates(self.skill, self.metric, self.system)

    def width(self) -> float:
        """The width of the metric's range."""
        low, high = self.arm.metric(self.metric).bounds
        return high - low


Pair = tuple[Side, Side, float]  # one, the other, and a factor


def difference(one: Arm, other: Arm, skill: str, metric: str, system: str = "after") -> Difference | None:
    """`one` less `other`, over the seeds that both have and the items of all of these; None where there are none.

    Of metrics of the whole corpus, and of runs without items.csv, seeds alone are compared.
    """
    return mean_difference([(Side(one, skill, metric, system), Side(other, skill, metric, system), 1.0)])


def mean_difference(pairs: Sequence[Pair]) -> Difference | None:
    """The mean over pairs of one side less the other, times its factor, over the seeds that all of them have.

    Items of each pair are drawn apart; seeds are the same. None without a seed, and where items are not known seeds
    alone are compared, as in `difference`.
    """
    seeds = sorted(set.intersection(*(side.seeds for *sides, _ in pairs for side in sides))) if pairs else []
    if not seeds:
        return None
    width = sum(abs(factor) * one.width() for one, _, factor in pairs) / len(pairs)
    found = [_table([(_items(one, seed), _items(other, seed)) for seed in seeds]) for one, other, _ in pairs]
    tables = [table for table in found if table is not None]
    if len(tables) == len(pairs):
        return crossed(*_joined(tables, [factor for *_, factor in pairs]), width=width)
    values = [(one.estimates(), other.estimates(), factor) for one, other, factor in pairs]
    over = [sum(f * (a[seed]["value"] - b[seed]["value"]) for a, b, f in values) / len(pairs) for seed in seeds]
    return over_seeds_alone(over, width=width)


def _joined(tables: Sequence[Table], factors: Sequence[float]) -> Table:
    """One table of differences whose mean is that of the tables' means.

    Items vary about the mean of their own table, whose number is not drawn.
    """
    scaled = [differences * factor for (differences, _), factor in zip(tables, factors, strict=True)]
    if len(tables) == 1:
        return scaled[0], tables[0][1]
    means = [one.mean() for one in scaled]
    total = sum(one.shape[1] for one in scaled)
    weights = [total / (len(scaled) * one.shape[1]) for one in scaled]
    parts = [(one - mean) * weight for one, mean, weight in zip(scaled, means, weights, strict=True)]
    names = [[None if n is None else f"{i} {n}" for n in groups] for i, (_, groups) in enumerate(tables)]
    return np.concatenate(parts, axis=1) + np.mean(means), [name for part in names for name in part]


def _items(side: Side, seed: int) -> pd.DataFrame | None:
    folder = side.arm.runs[seed].folder
    return None if folder is None else item_table(folder).get((side.skill, side.system, side.metric))


def _table(pairs: Sequence[tuple[pd.DataFrame | None, pd.DataFrame | None]]) -> Table | None:
    """The differences [seeds, items] and the items' groups.

    None where a table is missing, no item is in all tables, or the score is no mean and no ratio of sums.
    """
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < len(pairs):
        return None
    ids = known[0][0].index
    for table in (table for pair in known for table in pair):
        ids = ids[ids.isin(table.index)]
    rows = [[_values(table.loc[ids]) for table in pair] for pair in known]
    if not len(ids) or any(values is None for row in rows for values in row):
        return None
    groups = known[0][0].loc[ids, "group"].astype(object)
    return np.stack([one - other for one, other in rows]), groups.where(groups.notna(), None).tolist()  # type: ignore[operator]


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
