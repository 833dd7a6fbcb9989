"""The difference of two systems that were measured on the same items with the same seeds: interval and test.

Seeds and items are both drawn, and cross: each seed is evaluated on each item. With D the differences of S seeds and G
items (or groups of items), their mean squares of the two-way table give the variance of the mean

    v = (max(MS_seeds, MS_rest) + max(MS_items, MS_rest) - MS_rest) / (S G)

(Cornfield & Tukey 1956; no component of variance is below 0), and Satterthwaite's (1946) approximation its degrees of
freedom, S - 1 at least. Where MS_seeds adds nothing, and there are three seeds or more, these are the G - 1 of items.
Interval and p-value are Student's t. With one seed, items alone are drawn; with one group, or where items are not
known, seeds alone.

Pairing takes out what two systems have in common (arXiv 2411.00640); the difference of ratios of sums, as bits per
byte, is linearised item by item.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from kd.intervals import wilson

NAN = float("nan")


class Difference(NamedTuple):
    """A difference of means, its interval and its p-value; NaN where there is none.

    items, seeds: their numbers; 0 items where seeds alone are compared. left_out: items that lack a value in one of the
    runs, as a judge's verdict, and are in no number here.
    """

    value: float
    low: float
    high: float
    p: float
    items: int
    seeds: int
    left_out: int = 0


def crossed(
    differences: np.ndarray,
    groups: Sequence[str | None] | None = None,
    *,
    width: float = np.inf,
    confidence: float = 0.95,
) -> Difference:
    """The mean of `differences`, [seeds, items].

    groups: of the items; whole groups are drawn. width: of the metric's range, which a difference cannot exceed, and by
    which one without any variance gets an interval: that of no deviation among so many groups.
    """
    seeds, items = differences.shape
    table = _by_group(differences, groups)
    value, (variance, freedom) = float(table.mean()), _variance(table)
    if np.isnan(variance):
        return Difference(value, NAN, NAN, NAN, items, seeds)
    if variance <= 1e-24 * max(1.0, value**2):  # but for rounding
        count = table.shape[1] if table.shape[1] > 1 else seeds  # all seeds are evaluated on the same items
        spread = wilson(0.0, count, confidence)[1] * width
        p = 1.0 if abs(value) < 1e-12 else float(2.0 ** (1 - count))
        return Difference(value, *_within(value, spread, width), p, items, seeds)
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(value, *_within(value, half, width), p, items, seeds)


def over_seeds_alone(differences: Sequence[float], *, width: float = np.inf, confidence: float = 0.95) -> Difference:
    """The mean of one difference for each seed, by the paired t test; without an interval for one seed."""
    found = np.asarray(differences, dtype=float)[:, None]
    return crossed(found, width=width, confidence=confidence)._replace(items=0)


def linearised(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Values of items whose mean is sum(above) / sum(below), and which vary as that ratio does."""
    ratio = above.sum() / below.sum()
    return ratio + (above - ratio * below) / below.mean()


def _by_group(differences: np.ndarray, groups: Sequence[str | None] | None) -> np.ndarray:
    """[seeds, groups], of which the mean is that of the items, and which vary as sums over groups do."""
    if groups is None:
        return differences
    names = [("alone", i) if name is None else ("group", name) for i, name in enumerate(groups)]
    codes = np.unique([f"{kind} {name}" for kind, name in names], return_inverse=True)[1]
    count = codes.max() + 1
    if count == differences.shape[1]:
        return differences
    means = differences.mean(1, keepdims=True)
    sums = np.stack([np.bincount(codes, weights=row, minlength=count) for row in differences - means])
    return means + sums * count / differences.shape[1]


def _variance(table: np.ndarray) -> tuple[float, float | int]:
    """The variance of the table's mean and its degrees of freedom; NaN for a single number."""
    seeds, items = table.shape
    if table.size < 2:
        return NAN, NAN
    if seeds == 1 or items == 1:
        return float(table.var(ddof=1)) / table.size, table.size - 1
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    of_seeds = items * ((rows - mean) ** 2).sum() / (seeds - 1)
    of_items = seeds * ((columns - mean) ** 2).sum() / (items - 1)
    rest = ((table - rows[:, None] - columns + mean) ** 2).sum() / ((seeds - 1) * (items - 1))
    of_items = max(of_items, rest)
    total = max(of_seeds, rest) + of_items - rest
    if total <= 0 or (seeds > 2 and of_seeds <= rest):
        return total / table.size, items - 1
    parts = of_seeds**2 / (seeds - 1) + of_items**2 / (items - 1) + rest**2 / ((seeds - 1) * (items - 1))
    return total / table.size, max(total**2 / parts, seeds - 1)


def _within(value: float, half: float, width: float) -> tuple[float, float]:
    if not np.isfinite(half):
        return NAN, NAN
    return max(-width, value - half), min(width, value + half)
