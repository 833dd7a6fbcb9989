"""The length-controlled win rate: by hand, by simulation, and beside scikit-learn.

Run: python -m pytest tests/judges/test_length_control.py
"""

import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kd.intervals import mean
from kd.judges.length_control import PENALTY, length_controlled, length_controlled_score


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def simulated(count: int, theta: float, phi: float, seed: int = 0) -> np.ndarray:
    """Verdicts of a judge with P(win) = sigmoid(theta + phi tanh(d / s)), on answers most of which are longer."""
    rng = np.random.default_rng(seed)
    longer = rng.normal(30, 50, count).round()
    chance = 1 / (1 + np.exp(-theta - phi * np.tanh(longer / longer.std(ddof=1))))
    return np.stack([(rng.random(count) < chance).astype(float), longer], axis=1)


def test_a_judge_that_goes_by_length_alone_has_no_preference() -> None:
    rows = simulated(4000, theta=0, phi=3)
    assert rows[:, 0].mean() > 0.65
    assert length_controlled(rows) == pytest.approx(0.5, abs=0.03)
    strict = np.array([[float(d > 0), d] for d in (-9, -4, -1, 1, 4, 9)])  # separable, and symmetric
    assert length_controlled(strict) == pytest.approx(0.5, abs=1e-6)


def test_a_judge_that_goes_by_quality_has_its_win_rate() -> None:
    """Seven of ten wins at each difference in length."""
    rows = np.array([[float(i < 7), d] for d in (-20, -5, 0, 10, 40) for i in range(10)])
    assert length_controlled(rows) == pytest.approx(0.7, abs=1e-3)
    both = simulated(4000, theta=0.8, phi=2)  # better, and longer
    assert length_controlled(both) == pytest.approx(sigmoid(0.8), abs=0.03)
    assert both[:, 0].mean() > sigmoid(0.8) + 0.05


def test_answers_of_equal_length_by_hand() -> None:
    """Without a difference phi is 0, and 10 (sigmoid(theta) - 0.65) + 0.01 theta = 0, six wins and a tie of ten."""
    found = length_controlled(np.array([[1.0, 3]] * 6 + [[0.5, 3]] + [[0.0, 3]] * 3))
    assert 10 * (found - 0.65) + 0.01 * math.log(found / (1 - found)) == pytest.approx(0, abs=1e-6)


def test_it_is_the_regression_of_scikit_learn() -> None:
    """Which has no penalty on its intercept; a tie is half a win and half a loss."""
    rows = simulated(300, theta=0.5, phi=1.5)
    rows[::7, 0] = 0.5
    feature = np.tanh(rows[:, 1] / rows[:, 1].std(ddof=1))[:, None]
    fitted = LogisticRegression(C=1 / PENALTY[1], tol=1e-8).fit(
        np.concatenate([feature, feature]),
        np.repeat([1, 0], len(rows)),
        sample_weight=np.concatenate([rows[:, 0], 1 - rows[:, 0]]),
    )
    assert length_controlled(rows) == pytest.approx(sigmoid(fitted.intercept_[0]), abs=2e-4)


def test_it_rises_with_wins_and_turns_with_the_answers() -> None:
    rows, found = simulated(40, theta=0, phi=1), list[float]()
    rows[:, 0] = 0
    for i in range(len(rows)):
        rows[i, 0] = 1
        found.append(length_controlled(rows))
    assert all(a < b for a, b in pairwise(found))
    rows = simulated(40, theta=0.4, phi=1)
    turned = np.stack([1 - rows[:, 0], -rows[:, 1]], axis=1)
    assert length_controlled(turned) == pytest.approx(1 - length_controlled(rows), abs=1e-6)


@pytest.mark.parametrize("longer", [[1, 2, 3, 4, 5, 6, 7, 8], [5] * 8, [-3, 900, -2, 4, -7, 1, -1, 2]])
def test_separable_verdicts_do_not_diverge(longer: list[int]) -> None:
    """All win, or the longer half wins: finite, inside of the range, and with an interval."""
    every = np.array([[1.0, d] for d in longer])
    assert 0.9 < length_controlled(every) < 1
    half = np.array([[float(rank > 3), d] for rank, d in enumerate(sorted(longer))])
    names = [f"r{i}" for i in range(8)]
    score = length_controlled_score(half, names, resamples=100)
    assert 0 < score.low <= score.value <= score.high < 1
    assert score.n == 8


def test_verdicts_that_are_alike_have_the_interval_of_the_win_rate() -> None:
    names = [f"r{i}" for i in range(8)]
    for value in (0.0, 0.5, 1.0):
        rows = np.array([[value, d] for d in range(8)])
        assert length_controlled_score(rows, names) == mean([value] * 8, names)


def test_its_interval_draws_groups_together() -> None:
    """Forty items of which four are alike vary as ten do."""
    rows = simulated(10, theta=0.2, phi=1)
    four = np.repeat(rows, 4, axis=0)
    grouped = length_controlled_score(four, [str(i // 4) for i in range(40)], resamples=300)
    apart = length_controlled_score(four, [str(i) for i in range(40)], resamples=300)
    assert grouped.high - grouped.low > 1.5 * (apart.high - apart.low)
