"""Every number with its interval: its likely range, had other problems or seeds been drawn.

Problems that come from one source (a template, a document) are not independent: `groups` names the source of each
item, and whole groups are resampled. Without it, every item is a group of its own, as is an item of group None.

No interval leaves the range of its metric, and none of a share is a point: where all outcomes are alike, it is
Wilson's interval for that many of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

Numbers = Sequence[float] | np.ndarray | pd.Series
Groups = Sequence[str | None] | Sequence[int | None] | np.ndarray | None

NAN = float("nan")
_BATCH = 2**22  # numbers that a bootstrap draws at a time


class Score(NamedTuple):
    """A value over `n` items with its interval; NaN where there is none."""

    value: float
    n: int
    low: float
    high: float


def ratio(
    numerator: Numbers,
    denominator: Numbers,
    groups: Groups = None,
    *,
    share: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """sum(numerator) / sum(denominator), with an expanded percentile bootstrap interval over groups.

    The percentiles are moved outward so that for a mean of normal values the interval is as wide as Student's t
    interval (the expanded percentile interval of Hesterberg 2015, arXiv 1411.5279); plain percentiles are too narrow
    where groups are few. One group alone has no interval: NaN. The same seed gives the same interval.

    share: no group's ratio is below 0 or above 1. Where all of them are the same, so that a bootstrap has no spread,
        the interval is Wilson's for that share of as many items as there are groups.
    """
    above, below = _group_sums(numerator, groups), _group_sums(denominator, groups)
    n, count = len(numerator), len(above)
    value = _quotient(above, below) if n else np.float64(NAN)
    if count < 2 or not np.isfinite(value):
        return Score(float(value), n, NAN, NAN)
    interval = stats.bootstrap(
        (above, below),
        _quotient,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // count),
        confidence_level=_expanded(confidence, count),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = sorted((float(interval.low), float(interval.high)))  # interpolation may put equal ends an ulp apart
    if share and np.isclose(low, high, rtol=1e-9, atol=0):
        low, high = wilson(float(np.clip(value, 0, 1)), count, confidence)
    return Score(float(value), n, low, high)


def mean(
    scores: Numbers,
    groups: Groups = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """Mean of the scores: as a proportion if all are 0 or 1, else as a ratio of sums (a share's if between 0 and 1).

    bounds: the least and the largest score. Scores between others than 0 and 1 are shares of the way between them;
        where one of them is infinite, the interval is that of a ratio.
    """
    values = np.asarray(scores, dtype=float)
    if not np.isfinite(bounds).all():
        return ratio(values, np.ones_like(values), groups, confidence=confidence, resamples=resamples, seed=seed)
    if bounds != (0, 1):
        low, width = bounds[0], bounds[1] - bounds[0]
        found = mean((values - low) / width, groups, confidence=confidence, resamples=resamples, seed=seed)
        return Score(low + width * found.value, found.n, low + width * found.low, low + width * found.high)
    if np.isin(values, (0.0, 1.0)).all():
        return proportion(values, groups, confidence=confidence)
    settings: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return ratio(values, np.ones_like(values), groups, share=_within(values, 0.0, 1.0), **settings)


def proportion(outcomes: Numbers, groups: Groups = None, *, confidence: float = 0.95) -> Score:
    """Share of ones with Wilson's score interval (Wilson 1927), which is sound at 0 of n and n of n too.

    With groups, n in the interval is the effective number of items p (1 - p) / v, where v is the variance of p as
    estimated from the groups (Franco et al. 2019, PMC6690503): at least the number of groups and at most n. If all
    outcomes are the same nothing is known about v, and it is the number of groups.
    """
    values = np.asarray(outcomes, dtype=float)
    if len(values) == 0:
        return Score(NAN, 0, NAN, NAN)
    p = float(values.mean())
    low, high = wilson(p, _effective_count(values, groups), confidence)
    return Score(p, len(values), low, high)


def resampled(
    rows: np.ndarray,
    total: Callable[[np.ndarray], float],
    groups: Groups = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """total(rows), a number of all rows together, with the expanded percentile interval of `ratio` over groups.

    Rows of one group are drawn together. Draws for which `total` is NaN do not count. The same seed gives the same
    interval; one group alone has none.
    """
    n = len(rows)
    value = float(total(rows)) if n else NAN
    parts = _Parts(n, groups)
    count = len(parts.sizes)
    if count < 2 or not np.isfinite(value):
        return Score(value, n, NAN, NAN)
    rng = np.random.default_rng(seed)
    values = np.array([total(rows[parts.places(rng.integers(count, size=count))]) for _ in range(resamples)])
    tail = (1 - _expanded(confidence, count)) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail)) if np.isfinite(values).any() else (NAN, NAN)
    return Score(value, n, float(min(low, high)), float(max(low, high)))


def over_seeds(
    values: Numbers, counts: Sequence[int], bounds: tuple[float, float], *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of one value for each seed and the ends of its interval, NaN for a single seed.

    The interval is Student's t interval with a degree of freedom less than there are seeds, on a scale that stays
    within `bounds`, v being the variance of the mean as estimated from the seeds:

        (0, 1)     all q with |p - q| <= t sqrt(q (1 - q) / n), n = p (1 - p) / v: Wilson's interval with an effective
                   number of items (Franco et al. 2019, PMC6690503) and t for z (Korn & Graubard 1998). Where all seeds
                   have the same share, v is 0, and n is the number of items over all seeds: 0 of 96 has [0, 0.16],
                   and shares of no items at all have [0, 1].
        (a, b)     the same on the way from a to b.
        (0, inf)   m exp(-+ t sqrt(v) / m), the t interval of log m (delta method).
        else       m -+ t sqrt(v); also where a value is outside of the bounds.

    counts: items behind each value.

    Raises ValueError where there is no value, or not one count, which is not negative, for each.
    """
    found = np.asarray(values, dtype=float)
    if not len(found) or len(counts) != len(found) or min(counts) < 0:
        raise ValueError(f"{len(found)} values over seeds with the counts {list(counts)}; give each value its items")
    mean, count = float(found.mean()), len(found)
    if count < 2:
        return mean, NAN, NAN
    if np.isfinite(bounds).all() and bounds != (0, 1):
        low, width = bounds[0], bounds[1] - bounds[0]
        share = over_seeds((found - low) / width, counts, (0.0, 1.0), confidence=confidence)
        return mean, low + width * share[1], low + width * share[2]
    t, error = float(stats.t.ppf((1 + confidence) / 2, count - 1)), float(found.std(ddof=1) / np.sqrt(count))
    if not _within(found, *bounds) or bounds[0] != 0:
        return mean, mean - t * error, mean + t * error
    if bounds[1] == 1:
        spread = mean * (1 - mean)
        alike = np.ptp(found) <= 1e-12 or spread == 0  # but for rounding
        return mean, *_score_interval(mean, sum(counts) if alike else spread / error**2, t)
    ratio = np.exp(t * error / mean) if mean > 0 else 1.0
    return mean, float(mean / ratio), float(mean * ratio)


def wilson(p: float, n: float | int, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of Wilson's interval for a share p of n: all q with |p - q| <= z sqrt(q (1 - q) / n); of n = 0, [0, 1]."""
    return _score_interval(p, n, float(stats.norm.ppf((1 + confidence) / 2)))


def _score_interval(p: float, n: float | int, z: float) -> tuple[float, float]:
    return _score_below(p, n, z), 1 - _score_below(1 - p, n, z)


def _score_below(p: float, n: float | int, z: float) -> float:
    """The lower end, exactly 0 for p = 0."""
    below = (n * p + z * z / 2 - z * np.sqrt(n * p * (1 - p) + z * z / 4)) / (n + z * z)
    return max(0.0, float(below))


def _within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).all())


def _effective_count(values: np.ndarray, groups: Groups) -> float | int:
    n, p = len(values), values.mean()
    sizes = _group_sums(np.ones(n), groups)
    count = len(sizes)
    if count == n:
        return n
    if count == 1 or p in (0.0, 1.0):
        return count
    residuals = _group_sums(values, groups) - p * sizes
    variance = count / (count - 1) * (residuals**2).sum() / n**2
    return n if variance == 0 else float(np.clip(p * (1 - p) / variance, count, n))


def _group_sums(values: Numbers, groups: Groups) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if groups is None:
        return array
    return np.bincount(_group_numbers(groups), weights=array)


def _group_numbers(groups: Any) -> np.ndarray:
    """The number of each item's group, by the first item; None is no group, and has a number of its own."""
    codes, names = pd.factorize(pd.Series(list(groups), dtype=object))
    alone = codes < 0
    codes[alone] = len(names) + np.arange(alone.sum())
    return codes


class _Parts:
    """The items of each group."""

    def __init__(self, n: int, groups: Groups):
        numbers = np.arange(n) if groups is None else _group_numbers(groups)
        self.order, self.sizes = numbers.argsort(kind="stable"), np.bincount(numbers)
        self.starts = self.sizes.cumsum() - self.sizes

    def places(self, chosen: np.ndarray) -> np.ndarray:
        """The items of these groups, one group after another."""
        sizes = self.sizes[chosen]
        shift = self.starts[chosen] - (sizes.cumsum() - sizes)
        return self.order[np.arange(sizes.sum()) + shift.repeat(sizes)]


def _quotient(above: np.ndarray, below: np.ndarray, axis: int = -1) -> np.ndarray | np.float64:
    with np.errstate(invalid="ignore", divide="ignore"):  # a denominator of 0 gives NaN
        return above.sum(axis=axis) / below.sum(axis=axis)


def _expanded(confidence: float, count: int) -> float:
    t = stats.t.ppf((1 + confidence) / 2, df=count - 1)
    return float(1 - 2 * stats.norm.cdf(-np.sqrt(count / (count - 1)) * t))
