"""Paired differences, corrections and ranks: by hand, against scipy, and by simulation.

Run: python -m pytest tests/reports/test_comparisons.py
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from kd.reports.comparisons.pareto import front
from kd.reports.comparisons.ranks import critical_difference, ranks
from kd.reports.corrections import benjamini_hochberg, holm
from kd.reports.crossed import Difference, crossed, linearised, over_seeds_alone

Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # rng, seeds, items -> differences [seeds, items]


# --- corrections ---


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.04 * 1)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert list(holm([])) == []


def test_a_comparison_that_was_not_made_does_not_count() -> None:
    found = holm([0.02, math.nan, 0.03])
    assert found[[0, 2]] == pytest.approx([0.04, 0.04])
    assert math.isnan(found[1])
    found = benjamini_hochberg([0.02, math.nan, 0.03])
    assert found[[0, 2]] == pytest.approx(stats.false_discovery_control([0.02, 0.03]))


def test_holm_rejects_what_bonferroni_does_and_never_more_than_uncorrected() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        values = rng.random(size) ** 2
        corrected = holm(values)
        assert (corrected >= values).all()
        assert (corrected <= np.minimum(1, size * values) + 1e-15).all()
        assert (np.argsort(values, kind="stable") == np.lexsort((values, corrected))).all()
        place = rng.permutation(size)
        assert holm(values[place]) == pytest.approx(corrected[place])


# --- one seed, one item ---


def test_one_seed_is_the_paired_t_test_over_items() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 32))
    found = crossed((one - other)[None])
    test = stats.ttest_rel(one, other)
    interval = test.confidence_interval()
    assert found[:4] == pytest.approx((one.mean() - other.mean(), interval.low, interval.high, test.pvalue))
    assert (found.items, found.seeds) == (32, 1)


def test_seeds_alone_are_the_paired_t_test_over_seeds() -> None:
    one, other = np.array([0.5, 0.7, 0.6]), np.array([0.4, 0.3, 0.55])
    found = over_seeds_alone(list(one - other))
    test = stats.ttest_rel(one, other)
    assert (found.value, found.p) == pytest.approx((one.mean() - other.mean(), test.pvalue))
    assert found.items == 0
    assert math.isnan(over_seeds_alone([0.3]).low)


def test_groups_are_drawn_whole() -> None:
    """Items of one group are one observation: three copies of each item give the interval of the items alone."""
    rng = np.random.default_rng(2)
    table = rng.normal(0.2, 1.0, size=(3, 12))
    alone = crossed(table)
    copies = crossed(np.repeat(table, 3, axis=1), [f"g{i}" for i in range(12) for _ in range(3)])
    assert copies[:4] == pytest.approx(alone[:4])
    assert crossed(np.repeat(table, 3, axis=1)).high < copies.high
    assert crossed(table, [None] * 12) == alone  # None is no group


def test_the_two_way_table_by_hand() -> None:
    """Rows (seeds) 1, 3 and 2, 6: means 2 and 4 of 3, columns 1.5 and 4.5. MS_seeds = 2 (1 + 1) / 1 = 4, MS_items =
    2 (2.25 + 2.25) / 1 = 9, residuals +-0.5, MS_rest = 4 (0.25) / 1 = 1. v = (4 + 9 - 1) / 4 = 3; df = 12^2 / (16 + 81
    + 1) = 1.469."""
    found = crossed(np.array([[1.0, 3.0], [2.0, 6.0]]))
    t = stats.t.ppf(0.975, 144 / 98)
    assert found[:4] == pytest.approx(
        (3.0, 3 - t * math.sqrt(3), 3 + t * math.sqrt(3), 2 * stats.t.sf(math.sqrt(3), 144 / 98))
    )


def test_no_difference_at_all_is_no_certainty() -> None:
    same = crossed(np.zeros((2, 16)), width=1.0)
    assert (same.value, same.p) == (0.0, 1.0)
    assert 0 < same.high < 0.2
    assert same.low == -same.high
    always = crossed(np.ones((1, 16)), width=1.0)
    assert always.high == 1.0
    assert 0.5 < always.low < 1
    assert always.p == pytest.approx(2.0**-15)  # of the test of signs: all 16 are alike


def test_seeds_of_the_same_items_are_no_more_of_them() -> None:
    assert crossed(np.ones((5, 2)), width=1.0) == crossed(np.ones((1, 2)), width=1.0)._replace(seeds=5)
    assert over_seeds_alone([1.0] * 5).p == pytest.approx(2.0**-4)


def test_a_ratio_is_linearised() -> None:
    """The mean is the ratio of sums, and the variance that of the delta method: of (a - r b) / mean(b)."""
    above, below = np.array([2.0, 3.0, 10.0]), np.array([1.0, 3.0, 4.0])
    values = linearised(above, below)
    assert values.mean() == pytest.approx(15 / 8)
    assert values.var(ddof=1) == pytest.approx(np.var((above - 15 / 8 * below) / (8 / 3), ddof=1))


# --- simulation ---


def normal(of_seeds: float, of_items: float, rest: float = 1.0) -> Draw:
    def draw(rng: np.random.Generator, seeds: int, items: int) -> np.ndarray:
        found = of_seeds * rng.normal(size=(seeds, 1)) + of_items * rng.normal(size=(1, items))
        return found + rest * rng.normal(size=(seeds, items))

    return draw


def answers(share: float, of_seeds: float) -> Draw:
    """Right or wrong answers of two systems, equally good over all seeds, on items that differ in difficulty."""

    def draw(rng: np.random.Generator, seeds: int, items: int) -> np.ndarray:
        start = math.log(share / (1 - share)) + rng.normal(size=(1, items))
        logits = (start + of_seeds * rng.normal(size=(seeds, 1)) for _ in range(2))
        one, other = (rng.random((seeds, items)) < 1 / (1 + np.exp(-logit)) for logit in logits)
        return one.astype(float) - other

    return draw


SIMULATED = {
    "one seed, 32 items": (1, 32, normal(0, 0)),
    "one seed, right or wrong": (1, 32, answers(0.3, 0.0)),
    "three seeds that matter": (3, 32, normal(0.5, 0.3)),
    "three seeds, items that matter": (3, 32, normal(0.1, 1.0)),
    "three seeds, right or wrong": (3, 32, answers(0.5, 0.3)),
    "five seeds that matter": (5, 32, normal(0.5, 0.3)),
    "five seeds, right or wrong": (5, 32, answers(0.2, 0.5)),
}


@pytest.mark.parametrize(("seeds", "items", "draw"), SIMULATED.values(), ids=SIMULATED)
def test_the_interval_holds_the_truth_and_the_test_its_size(seeds: int, items: int, draw: Draw) -> None:
    """0 is in the 95 % interval in 93 to 97 % of 1000 draws, and p below 0.05 in the others, for the two are one."""
    rng = np.random.default_rng(5)
    found = [crossed(draw(rng, seeds, items)) for _ in range(1000)]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.92 < held < 0.98  # 0.95 -+ 0.02 and what 1000 draws leave open, 0.014
    assert np.mean([one.p >= 0.05 for one in found]) == held


def test_two_seeds_hold_it_more_seldom_where_seeds_matter() -> None:
    """As the note under the table has it."""
    rng = np.random.default_rng(6)
    found = [crossed(normal(0.5, 0.3)(rng, 2, 32)) for _ in range(1000)]
    assert 0.86 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.95


def test_power_a_difference_that_is_there_is_found() -> None:
    rng = np.random.default_rng(7)
    found = [crossed(0.8 + normal(0.1, 0.5)(rng, 3, 32)) for _ in range(200)]
    assert np.mean([one.p < 0.05 for one in found]) > 0.9


def test_the_order_of_seeds_and_items_changes_nothing() -> None:
    rng = np.random.default_rng(8)
    table, groups = rng.normal(size=(3, 20)), [f"g{i // 2}" for i in range(20)]
    rows, columns = rng.permutation(3), rng.permutation(20)
    moved = crossed(table[rows][:, columns], [groups[i] for i in columns])
    assert moved[:4] == pytest.approx(crossed(table, groups)[:4])
    assert isinstance(moved, Difference)


# --- ranks and fronts ---


def test_ranks_are_friedmans_and_nemenyis() -> None:
    """Demšar 2006, section 3.2.2: k = 4, N = 14, q = 2.569, CD = 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    scores = np.array([[0.9, 0.8, 0.7], [0.8, 0.9, 0.6], [0.1, 0.8, 0.5]])
    found = ranks(scores, ["a", "b", "c"], ["x", "y", "z"])
    assert found.means == pytest.approx([(1 + 2.5 + 1) / 3, (2 + 1 + 2) / 3, (3 + 2.5 + 3) / 3])
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores).pvalue)


def test_the_pareto_front_by_hand() -> None:
    points = [(1.0, 0.5), (2.0, 0.7), (2.0, 0.6), (3.0, 0.7), (0.5, 0.1), (1.0, 0.5)]
    assert front(points) == [True, True, False, False, True, True]
