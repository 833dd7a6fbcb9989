import math

import numpy as np
import pytest
from scipy import stats

from kd.evaluation.intervals import mean, proportion, ratio, wilson


@pytest.mark.parametrize(("ones", "n"), [(0, 32), (1, 1), (3, 32), (16, 32), (32, 32), (250, 1000)])
def test_wilson_is_scipys(ones, n):
    score = proportion([1.0] * ones + [0.0] * (n - ones))
    interval = stats.binomtest(ones, n).proportion_ci(method="wilson")
    assert score.value == ones / n
    assert score.n == n
    assert (score.low, score.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_wilson_by_hand():
    # p = 0, n = 10, z = 1.95996: centre = half = (z^2/20) / (1 + z^2/10) = 0.192073 / 1.384146 = 0.138766
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    # p = 1/2, n = 4, z = 1: 1/2 -+ sqrt(1/16 + 1/64) / (1 + 1/4) = 1/2 -+ 0.223607
    z1 = stats.norm.cdf(1) - stats.norm.cdf(-1)
    assert wilson(0.5, 4, z1) == pytest.approx((0.276393, 0.723607), abs=1e-6)


def test_groups_that_are_all_alike_count_once():
    """Ten templates, each right four times or wrong four times, are ten observations (nearly: G / (G - 1))."""
    outcomes, groups = [1.0] * 20 + [0.0] * 20, [i // 4 for i in range(40)]
    score = proportion(outcomes, groups)
    assert score.n == 40
    assert (score.low, score.high) == pytest.approx(wilson(0.5, 10))
    assert proportion([0.0] * 40, groups).high == pytest.approx(wilson(0.0, 10)[1])
    assert proportion([1.0] * 40, [0] * 40).low == pytest.approx(wilson(1.0, 1)[0])


def test_groups_that_tell_nothing_change_nothing():
    """One right and one wrong in every template: no variance between them, so all items count."""
    outcomes, groups = [1.0, 0.0] * 10, [i // 2 for i in range(20)]
    assert proportion(outcomes, groups) == proportion(outcomes)


def test_proportion_or_mean():
    assert mean([0.0, 1.0, 1.0, 0.0]) == proportion([0.0, 1.0, 1.0, 0.0])
    parts = mean([0.0, 0.5, 1.0, 0.25])
    assert parts.value == 0.4375
    assert 0.0 <= parts.low < parts.value < parts.high <= 1.0


def test_ratio_of_sums_is_not_a_mean_of_ratios():
    score = ratio([1.0, 9.0], [1.0, 3.0])
    assert score.value == 10 / 4
    assert score.n == 2
    # of two records a resample holds one twice, or both: the ends are the records' own ratios
    assert (score.low, score.high) == (1.0, 3.0)


def test_proportional_sums_have_no_spread():
    score = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert score == (2.0, 3, 2.0, 2.0)


def test_too_little_for_an_interval():
    one = ratio([3.0], [2.0])
    assert (one.value, one.n) == (1.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    group = ratio([1.0, 2.0], [1.0, 1.0], ["a", "a"])
    assert group.value == 1.5
    assert math.isnan(group.low)
    for nothing in (ratio([], []), mean([]), proportion([]), ratio([1.0, 2.0], [0.0, 0.0])):
        assert not math.isfinite(nothing.value)
    assert math.isnan(mean([]).low)


def test_groups_are_resampled_whole():
    """Copies of each record add nothing: three copies in a group give the interval of the records alone."""
    rng = np.random.default_rng(0)
    above, below = rng.gamma(2.0, size=12), rng.gamma(5.0, size=12)
    alone = ratio(above, below)
    copied = ratio(np.repeat(above, 3), np.repeat(below, 3), np.repeat(np.arange(12), 3))
    assert copied.n == 36
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert ratio(np.repeat(above, 3), np.repeat(below, 3)).high < copied.high


def test_same_seed_same_interval():
    above, below = [1.0, 2.0, 4.0, 3.0], [1.0, 1.0, 2.0, 3.0]
    assert ratio(above, below) == ratio(above, below)
    # drawn in several batches or in one, the interval covers the same share
    assert ratio(above, below, resamples=4000).value == ratio(above, below).value


@pytest.mark.parametrize("count", [8, 30])
def test_bootstrap_covers_as_often_as_it_says(count):
    """400 draws of a ratio whose truth is 2: 95 % intervals hold it 380 +- 4.4 times; plain percentiles would at 8
    records some 350 times."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        below = rng.uniform(1.0, 3.0, size=count)
        above = 2 * below + rng.normal(size=count)
        score = ratio(above, below, resamples=400)
        hits += score.low <= 2.0 <= score.high
    assert 365 <= hits <= 396


def test_wilson_covers_with_groups():
    """Templates differ in difficulty: taking items for independent would cover far too rarely."""
    rng = np.random.default_rng(3)
    grouped = alone = 0
    groups = np.repeat(np.arange(20), 6)
    for _ in range(300):
        outcomes = (rng.random(120) < np.repeat(rng.beta(0.5, 0.5, size=20), 6)).astype(float)
        low, high = proportion(outcomes, groups)[2:]
        grouped += low <= 0.5 <= high
        low, high = proportion(outcomes)[2:]
        alone += low <= 0.5 <= high
    assert grouped >= 0.9 * 300
    assert alone < 0.75 * 300
