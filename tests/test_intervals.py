import math

import numpy as np
import pytest
from scipy import stats

from kd.intervals import mean, over_seeds, proportion, ratio, resampled, wilson


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


def test_the_effective_number_of_items_by_hand():
    """Three templates of two items with 2, 1 and 0 right: p = 1/2, residuals 1, 0, -1, and of three groups v =
    3/2 (1 + 0 + 1)/6^2 = 1/12; so n = (1/4)/(1/12) = 3."""
    score = proportion([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"])
    assert (score.low, score.high) == pytest.approx(wilson(0.5, 3), abs=1e-12)
    # four templates with 2, 1, 1, 0: residuals 1, 0, 0, -1, v = 4/3 * 2/8^2 = 1/24, n = 6
    score = proportion([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert (score.low, score.high) == pytest.approx(wilson(0.5, 6), abs=1e-12)


def test_groups_without_a_difference_change_nothing():
    """One right and one wrong in every template: no variance between them, so all items count."""
    outcomes, groups = [1.0, 0.0] * 10, [i // 2 for i in range(20)]
    assert proportion(outcomes, groups) == proportion(outcomes)


def test_an_item_whose_group_is_none_stands_for_itself():
    outcomes = [1.0, 1.0, 0.0, 0.0, 1.0]
    assert proportion(outcomes, ["a", "a", None, None, "b"]) == proportion(outcomes, ["a", "a", "c", "d", "b"])
    assert proportion(outcomes, [None] * 5) == proportion(outcomes)
    numbers, below = [0.1, 0.7, 0.2, 0.4, 0.9], [1.0, 2.0, 1.0, 3.0, 1.0]
    assert ratio(numbers, below, [1, 1, None, None, 2]) == ratio(numbers, below, [1, 1, 3, 4, 2])


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


def test_the_ends_of_an_interval_without_spread_are_in_order():
    """Five texts of nine tokens and eight bytes under 1/388: quantiles of equal draws were an ulp apart."""
    score = ratio(np.full(5, 9 * np.log2(388)), np.full(5, 8.0))
    assert score.low <= score.high == pytest.approx(score.value)


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


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_share_without_spread_is_no_point(value):
    """No token of 96 records agreed (or all did, or half of each): as if 96 items had been drawn, not [0, 0]."""
    tokens = np.arange(1, 97)
    score = ratio(value * tokens, tokens, share=True)
    assert (score.low, score.high) == pytest.approx(wilson(value, 96))
    assert score.high - score.low > 0.03
    grouped = ratio(value * tokens, tokens, tokens % 8, share=True)
    assert (grouped.low, grouped.high) == pytest.approx(wilson(value, 8))
    scores = mean([value / 2] * 96)  # partial credit, the same everywhere
    assert (scores.low, scores.high) == pytest.approx(wilson(value / 2, 96))


def test_groups_are_resampled_whole():
    """Copies of each record add nothing: three copies in a group give the interval of the records alone."""
    rng = np.random.default_rng(0)
    above, below = rng.gamma(2.0, size=12), rng.gamma(5.0, size=12)
    alone = ratio(above, below)
    copied = ratio(np.repeat(above, 3), np.repeat(below, 3), np.repeat(np.arange(12), 3))
    assert copied.n == 36
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert ratio(np.repeat(above, 3), np.repeat(below, 3)).high < copied.high


@pytest.mark.parametrize("groups", [None, [i * i % 7 for i in range(50)]])
def test_a_number_of_rows_is_made_of_whole_groups(groups):
    rows, seen = np.random.default_rng(0).normal(size=(50, 2)), list[np.ndarray]()
    resampled(rows, lambda some: seen.append(some) or float(some.sum()), groups, resamples=20, seed=3)
    names = dict.fromkeys(range(50) if groups is None else groups)
    members = [[i for i in range(50) if (i if groups is None else groups[i]) == name] for name in names]
    draw = np.random.default_rng(3)
    for some in seen[1:]:
        chosen = draw.integers(len(members), size=len(members))
        assert np.array_equal(some, rows[[i for k in chosen for i in members[k]]])


def test_same_seed_same_interval():
    above, below = [1.0, 2.0, 4.0, 3.0], [1.0, 1.0, 2.0, 3.0]
    assert ratio(above, below) == ratio(above, below)
    # drawn in several batches or in one, the interval covers the same share
    assert ratio(above, below, resamples=4000).value == ratio(above, below).value


@pytest.mark.parametrize("count", [8, 30])
def test_bootstrap_covers_as_often_as_it_states(count):
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


# ---- over seeds ------------------------------------------------------------------------------------------------------

SHARE, POSITIVE, ANY = (0.0, 1.0), (0.0, math.inf), (-math.inf, math.inf)


def test_over_seeds_by_hand():
    # mean 2, sample deviation 1, t(0.975, 2 degrees) = 4.30265: half width 4.30265 / sqrt(3) = 2.48414
    assert over_seeds([1.0, 2.0, 3.0], [9] * 3, ANY) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-5)
    # on the scale of logarithms 2.48414 / 2 = 1.24207, e^1.24207 = 3.46278: 2 / 3.46278, 2 * 3.46278
    assert over_seeds([1.0, 2.0, 3.0], [9] * 3, POSITIVE) == pytest.approx((2.0, 0.57757, 6.92556), abs=1e-4)
    # deviation .1, so v = .01/3, n = .25/v = 75, t^2 = 18.5128: centre 1/2,
    # half = t sqrt(.25/75 + t^2/(4 * 75^2)) / (1 + t^2/75) = 4.30265 sqrt(.00333333 + .00082279) / 1.246837 = .222472
    assert over_seeds([0.4, 0.5, 0.6], [32] * 3, SHARE) == pytest.approx((0.5, 0.277528, 0.722472), abs=1e-4)


def test_none_of_96_over_three_seeds():
    # t^2 / (n + t^2) = 18.5128 / 114.5128
    assert over_seeds([0.0] * 3, [32] * 3, SHARE) == pytest.approx((0.0, 0.0, 0.161666), abs=1e-5)
    assert over_seeds([1.0] * 3, [32] * 3, SHARE) == pytest.approx((1.0, 1 - 0.161666, 1.0), abs=1e-5)


def test_a_value_outside_of_its_bounds_has_the_plain_interval():
    assert over_seeds([0.5, 1.5, 1.0], [9] * 3, SHARE) == over_seeds([0.5, 1.5, 1.0], [9] * 3, ANY)


def test_one_seed_and_seeds_that_are_alike():
    assert np.isnan(over_seeds([0.5], [32], SHARE)[1:]).all()
    assert over_seeds([2.0, 2.0], [32, 32], POSITIVE) == (2.0, 2.0, 2.0)
    assert over_seeds([0.0, 0.0], [32, 32], POSITIVE) == (0.0, 0.0, 0.0)
    low, high = over_seeds([0.1 + 0.2, 0.3, 0.3], [32] * 3, SHARE)[1:]  # alike but for rounding
    assert (low, high) == pytest.approx(over_seeds([0.3] * 3, [32] * 3, SHARE)[1:], abs=1e-9)


def test_shares_of_no_items_leave_everything_possible():
    assert over_seeds([0.0, 0.0], [0, 0], SHARE) == pytest.approx((0.0, 0.0, 1.0))
    assert wilson(0.3, 0) == pytest.approx((0.0, 1.0))
    for z in (0.5, 0.9, 0.95, 0.99):  # and exactly at the ends
        assert (wilson(0.0, 7, z)[0], wilson(1.0, 7, z)[1]) == (0.0, 1.0)
    # seeds that differ tell their variance themselves: as with 32 items each
    assert over_seeds([0.4, 0.5, 0.6], [0] * 3, SHARE) == over_seeds([0.4, 0.5, 0.6], [32] * 3, SHARE)


@pytest.mark.parametrize(("values", "counts"), [([], []), ([0.5, 0.5], [32]), ([0.5, 0.5], [32, -1])])
def test_counts_that_are_not_of_the_values_are_named(values, counts):
    with pytest.raises(ValueError, match=r"values over seeds with the counts .*; give each value its items"):
        over_seeds(values, counts, SHARE)


@pytest.mark.parametrize("bounds", [SHARE, POSITIVE])
def test_ends_stay_within_bounds_and_hold_the_mean(bounds):
    rng = np.random.default_rng(5)
    for _ in range(500):
        values = rng.beta(0.3, 0.3, size=int(rng.integers(2, 6)))
        found, low, high = over_seeds(values, [32] * len(values), bounds)
        assert bounds[0] <= low <= found <= high <= bounds[1]


def covered(draw, truth: float, count: int, bounds, draws: int = 2000) -> float:
    """How often the interval over so many seeds holds the truth."""
    intervals = [over_seeds(draw(count), [32] * count, bounds)[1:] for _ in range(draws)]
    return sum(low <= truth <= high for low, high in intervals) / draws


@pytest.mark.parametrize(
    ("share", "between", "count"), [(0.3, 0.0, 3), (0.5, 0.1, 3), (0.3, 0.1, 5), (0.1, 0.0, 5), (0.6, 0.2, 5)]
)
def test_shares_of_32_answers_are_covered(share, between, count):
    """Seeds whose true shares vary with the deviation `between`, each measured on 32 answers."""
    rng = np.random.default_rng(11)
    c = math.inf if between == 0 else share * (1 - share) / between**2 - 1

    def draw(seeds: int) -> np.ndarray:
        true = np.full(seeds, share) if between == 0 else rng.beta(share * c, (1 - share) * c, size=seeds)
        return rng.binomial(32, true) / 32

    assert 0.93 <= covered(draw, share, count, SHARE) <= 0.97


def test_rare_successes_are_covered_too():
    """Where two seeds of three have none right, a t interval of the shares holds the truth in 60 of 100 cases."""
    rng = np.random.default_rng(13)
    assert covered(lambda seeds: rng.binomial(32, 0.01, size=seeds) / 32, 0.01, 3, SHARE) >= 0.95
    assert covered(lambda seeds: rng.binomial(32, 0.01, size=seeds) / 32, 0.01, 3, ANY) < 0.7


@pytest.mark.parametrize(("spread", "count"), [(0.05, 3), (0.3, 3), (0.1, 5), (0.3, 5)])
def test_divergences_are_covered(spread, count):
    rng = np.random.default_rng(17)

    def draw(seeds: int) -> np.ndarray:
        return 2 * np.exp(spread * rng.normal(size=seeds) - spread**2 / 2)

    assert 0.93 <= covered(draw, 2.0, count, POSITIVE) <= 0.97


@pytest.mark.parametrize(("groups", "each", "share"), [(32, 1, 0.3), (32, 1, 0.5), (10, 3, 0.3), (16, 2, 0.3)])
def test_shares_over_items_are_covered(groups, each, share):
    """Templates of which each has a difficulty of its own (correlation 0.2 within), as many as a table has."""
    rng = np.random.default_rng(19)
    names, hits, draws = np.repeat(np.arange(groups), each), 0, 1500
    for _ in range(draws):
        chance = rng.beta(4 * share, 4 * (1 - share), size=groups) if each > 1 else np.full(groups, share)
        low, high = proportion((rng.random(len(names)) < chance[names]).astype(float), names)[2:]
        hits += low <= share <= high
    assert 0.93 <= hits / draws <= 0.97
