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
from kd.reports.settings import TRAINED_ON, has
from kd.runs.results import check_page


class Table(NamedTuple):
    """Differences [seeds, items], the groups of the items, and how many others lack a value in one of the runs."""

    differences: np.ndarray
    groups: Sequence[str | None]
    left_out: int = 0


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
    """`one` less `other`, over the seeds that both have; None where there are none.

    The items are those with a value in all of these runs; the others are counted (`left_out`). Of metrics of the whole
    corpus, and of runs without items.csv, seeds alone are compared.
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
    made = [_table([(_items(one, seed), _items(other, seed)) for seed in seeds]) for one, other, _ in pairs]
    tables = [table for table in made if table is not None]
    if len(tables) == len(pairs):
        joined = _joined(tables, [factor for *_, factor in pairs])
        found = crossed(joined.differences, joined.groups, width=width)
        return found._replace(left_out=joined.left_out)
    values = [(one.estimates(), other.estimates(), factor) for one, other, factor in pairs]
    over = [sum(f * (a[seed]["value"] - b[seed]["value"]) for a, b, f in values) / len(pairs) for seed in seeds]
    return over_seeds_alone(over, width=width)


def _joined(tables: Sequence[Table], factors: Sequence[float]) -> Table:
    """One table of differences; its mean is the mean of the tables' means.

    Items vary about the mean of their own table; the tables are not drawn.
    """
    scaled = [table.differences * factor for table, factor in zip(tables, factors, strict=True)]
    if len(tables) == 1:
        return tables[0]._replace(differences=scaled[0])
    means = [one.mean() for one in scaled]
    total = sum(one.shape[1] for one in scaled)
    weights = [total / (len(scaled) * one.shape[1]) for one in scaled]
    parts = [(one - mean) * weight for one, mean, weight in zip(scaled, means, weights, strict=True)]
    names = [None if name is None else f"{i} {name}" for i, table in enumerate(tables) for name in table.groups]
    lost = sum(table.left_out for table in tables)
    return Table(np.concatenate(parts, axis=1) + np.mean(means), names, lost)


def _items(side: Side, seed: int) -> pd.DataFrame | None:
    folder = side.arm.runs[seed].folder
    return None if folder is None else item_table(folder).get((side.skill, side.system, side.metric))


def _table(pairs: Sequence[tuple[pd.DataFrame | None, pd.DataFrame | None]]) -> Table | None:
    """The differences of the items that have a value in all tables.

    None where a table is missing, there is no such item, or the score is no mean and no ratio of sums.
    """
    known = [table for pair in pairs for table in pair if table is not None]
    parts = [part for part in map(_parts, known) if part is not None]
    if len(parts) < 2 * len(pairs):
        return None
    ids = known[0].index
    for part in parts:
        ids = ids[ids.isin(part.index)]
    rows = [_values(part.loc[ids]) for part in parts]
    values = [row for row in rows if row is not None]
    if not len(ids) or len(values) < len(rows):
        return None
    groups = known[0].loc[ids, "group"].astype(object)
    every = set[str]().union(*(table.index for table in known))
    differences = np.stack([one - other for one, other in zip(values[::2], values[1::2], strict=True)])
    return Table(differences, groups.where(groups.notna(), None).tolist(), len(every) - len(ids))


def _parts(table: pd.DataFrame) -> pd.DataFrame | None:
    """Numerator and denominator of each item that has a value, a mean's being the value and 1; None of a metric of the
    whole corpus."""
    rows = [(name, json.loads(text)) for name, text in table["statistics"].dropna().items()]
    rows = [(name, row) for name, row in rows if row is not None]
    if all(one is None or isinstance(one, str) for _, row in rows for one in row):  # none, or verdicts of judges
        values = table["value"].astype(float)
        return pd.DataFrame({"above": values, "below": 1.0})[np.isfinite(values)]
    if any(len(row) != 2 or isinstance(row[0], list) for _, row in rows):
        return None
    above, below = np.array([row for _, row in rows], dtype=float).T
    return pd.DataFrame({"above": above, "below": below}, index=[name for name, _ in rows])


def _values(parts: pd.DataFrame) -> np.ndarray | None:
    """A value for each item; their mean is the score. None for the ratio of nothing, as of a judge's ties alone."""
    above, below = parts["above"].to_numpy(), parts["below"].to_numpy()
    if (below == 1).all():
        return above
    return linearised(above, below) if below.sum() else None


def left_out_note(found: Sequence[Difference]) -> list[str]:
    """A sentence on the items that are in no difference, where there are some."""
    counts = sorted({one.left_out for one in found} - {0})
    if not counts:
        return []
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [f"{number} items without a value in one of the runs (as a judge's verdict) are in no difference."]


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
    """For each arm the one on the same data that has the `wanted` settings, and agrees with it in most others.

    Raises ValueError where no arm has them, a column is unknown, or two arms fit alike.
    """
    names = {_column(frame, name): value for name, value in wanted.items()}
    fitting = [arm for arm in frame.arms if has(arm.values, names)]
    text = ",".join(f"{name}={value}" for name, value in wanted.items())
    if not fitting:
        have = "; ".join(f"{name}: {', '.join(sorted({arm.values[name] for arm in frame.arms}))}" for name in names)
        raise ValueError(f"--baseline {text}: no run has these settings; there are {have}")
    by_skill = ([arm for arm in frame.arms if arm.skill == skill] for skill in frame.skills)
    groups = {id(arm): group for arms in by_skill for group in frame.comparable(arms) for arm in group}
    found: dict[int, Arm] = {}
    for i, arm in enumerate(frame.arms):
        if arm in fitting:
            continue
        same = [other for other in fitting if groups[id(other)] is groups[id(arm)]]
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
