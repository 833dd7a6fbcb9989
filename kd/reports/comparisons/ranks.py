"""Ranks of arms over skills: Friedman's test and Nemenyi's critical difference (Demšar 2006, JMLR 7)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from kd.reports.comparisons.pivot import mean_of
from kd.reports.frame import IDENTITY, Arm, Frame
from kd.reports.grid import Cell, Grid, number
from kd.reports.settings import TRAINED_ON


class Ranks(NamedTuple):
    """Mean ranks of k arms over N skills, 1 being the best.

    skills: with the digest of the items where a skill has several.
    p: of Friedman's test that all arms are alike, NaN for fewer than three arms.
    critical: the least difference of two mean ranks that Nemenyi's test finds at 0.05.
    left_out: arms of the same settings as another on the same items.
    """

    names: Sequence[str]
    means: np.ndarray
    skills: Sequence[str]
    p: float
    critical: float
    left_out: Sequence[str] = ()


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
    """The ranks of the arms that have a score on every skill; None for fewer than two arms or skills.

    Where arms of the same settings differ in their data, each data set of a skill counts as one on which arms are
    ranked, if two arms or more were evaluated on it. Arms that differ in models or versions alone are not distinguished
    by their settings and are left out.
    """
    places: dict[str, dict[str, float]] = {}  # by skill, or by data set of a skill, and arm
    twice: dict[str, None] = {}
    for skill in frame.skills:
        groups = frame.comparable(arm for arm in frame.arms if arm.skill == skill)
        for group in groups:
            place = skill if len(groups) == 1 else f"{skill} (items {group[0].items[:6]})"
            for arm in group:
                name, value = arm.without(TRAINED_ON, IDENTITY), _value(arm, metric, system)
                if name in places.setdefault(place, {}):
                    twice[name] = None
                if value is not None:
                    places[place][name] = value
    ranked = {place: found for place, found in places.items() if IDENTITY not in frame.columns or len(found) > 1}
    every = dict.fromkeys(name for found in ranked.values() for name in found if name not in twice)
    whole = [name for name in every if all(name in found for found in ranked.values())]
    if len(whole) < 2 or len(ranked) < 2:
        return None
    scores = np.array([[found[name] for found in ranked.values()] for name in whole])
    return ranks(scores, whole, list(ranked))._replace(left_out=list(twice))


def _value(arm: Arm, metric: str | None, system: str) -> float | None:
    """The mean of an arm on its own skill, where higher is better."""
    name = metric or arm.headline(arm.skill)
    mean = None if name is None else mean_of(arm, arm.skill, name, system)
    if name is None or mean is None:
        return None
    value: float = mean["value"]
    return value if arm.metric(name).higher_is_better else -value


def ranks_grid(frame: Frame, metric: str | None = None, system: str = "after") -> Grid | None:
    """Rows: arms by mean rank, with the arms that are not distinguishable from each."""
    found = ranks_of(frame, metric, system)
    if found is None:
        return None
    order = np.argsort(found.means, kind="stable").tolist()
    rows = [[found.names[i], Cell.number(float(found.means[i])), _alike(found, i)] for i in order]
    label = ", ".join(name for name in frame.columns if name not in (TRAINED_ON, IDENTITY))
    friedman = "" if np.isnan(found.p) else f"Friedman's test that all are alike: p = {found.p:.2g}. "
    notes = [
        f"Ranks of means over seeds, over {len(found.skills)} skills ({', '.join(found.skills)}); ties share theirs.",
        f"{friedman}Two mean ranks differ at 0.05 where they are {number(found.critical)} apart (Nemenyi).",
    ]
    if found.left_out:
        apart = "; ".join(found.left_out)
        notes.append(f"Left out, as runs of the same settings and items differ in models or versions: {apart}.")
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
