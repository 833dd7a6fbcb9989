"""Ranks of arms over skills: Friedman's test and Nemenyi's critical difference (Demšar 2006, JMLR 7)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from kd.reports.comparisons.pivot import mean_of
from kd.reports.frame import Frame
from kd.reports.grid import Cell, Grid, number
from kd.reports.settings import TRAINED_ON


class Ranks(NamedTuple):
    """Mean ranks of k arms over N skills, 1 being the best.

    p: of Friedman's test that all arms are alike, NaN for fewer than three arms. critical: the least difference of two
    mean ranks that Nemenyi's test finds at 0.05.
    """

    names: Sequence[str]
    means: np.ndarray
    skills: Sequence[str]
    p: float
    critical: float


def ranks(scores: np.ndarray, names: Sequence[str], skills: Sequence[str]) -> Ranks:
    """The ranks of `scores`, [arms, skills], in which higher is better; ties share their ranks."""
    arms, count = scores.shape
    means = stats.rankdata(-scores, axis=0).mean(1)
    tied = bool((np.ptp(scores, axis=0) == 0).all())
    p = 1.0 if tied else float(stats.friedmanchisquare(*scores).pvalue) if arms > 2 else float("nan")
    return Ranks(names, means, skills, p, critical_difference(arms, count))


def critical_difference(arms: int, skills: int, level: float = 0.05) -> float:
    """q sqrt(k (k + 1) / (6 N)), q being the studentized range of k groups divided by sqrt(2)."""
    q = stats.studentized_range.ppf(1 - level, arms, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(arms * (arms + 1) / (6 * skills)))


def ranks_of(frame: Frame, metric: str | None = None, system: str = "after") -> Ranks | None:
    """The ranks of the arms that have a score on every skill; None for fewer than two arms or skills."""
    skills = frame.skills
    by_name: dict[str, dict[str, float]] = {}
    for arm in frame.arms:
        name = metric or arm.headline(arm.skill)
        mean = None if name is None else mean_of(arm, arm.skill, name, system)
        if name is not None and mean is not None:
            sign = 1 if arm.metric(name).higher_is_better else -1
            by_name.setdefault(arm.label, {})[arm.skill] = sign * mean["value"]
    whole = {name: found for name, found in by_name.items() if len(found) == len(skills)}
    if len(whole) < 2 or len(skills) < 2:
        return None
    return ranks(np.array([[found[skill] for skill in skills] for found in whole.values()]), list(whole), skills)


def ranks_grid(frame: Frame, metric: str | None = None, system: str = "after") -> Grid | None:
    """Rows: arms by mean rank, with the arms that are not distinguishable from each."""
    found = ranks_of(frame, metric, system)
    if found is None:
        return None
    order = np.argsort(found.means, kind="stable").tolist()
    rows = [[found.names[i], Cell.number(float(found.means[i])), _alike(found, i)] for i in order]
    label = ", ".join(name for name in frame.columns if name != TRAINED_ON)
    friedman = "" if np.isnan(found.p) else f"Friedman's test that all are alike: p = {found.p:.2g}. "
    notes = [
        f"Ranks of means over seeds, over {len(found.skills)} skills ({', '.join(found.skills)}); ties share theirs.",
        f"{friedman}Two mean ranks differ at 0.05 where they are {number(found.critical)} apart (Nemenyi).",
    ]
    if found.critical > len(found.names) - 1:
        notes.append(f"With {len(found.skills)} skills no two of {len(found.names)} can be that far apart.")
    return Grid("Mean ranks", [label or "arm", "mean rank", "not distinguishable from"], rows, notes)


def _alike(found: Ranks, place: int) -> str:
    near = [
        name
        for i, name in enumerate(found.names)
        if i != place and abs(found.means[i] - found.means[place]) < found.critical
    ]
    return ", ".join(near) or "–"
