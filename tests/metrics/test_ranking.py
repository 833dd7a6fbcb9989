"""Rankings, by hand and against scikit-learn."""

import math
import random

import pytest
from sklearn.metrics import ndcg_score

from kd.metrics.ranking import hit, listed_ndcg, listed_order, listed_reciprocal_rank, ndcg, reciprocal_rank


def test_by_hand():
    # order 1, 0, 2: gains 0, 3, 1 at ranks 1, 2, 3; ideal 3, 1, 0
    value = (3 / math.log2(3) + 1 / 2) / (3 + 1 / math.log2(3))
    assert ndcg([-2, -1, -3], [3, 0, 1]) == pytest.approx(value)
    assert reciprocal_rank([-2, -1, -3], [3, 0, 1]) == 0.5
    assert [hit([-2, -1, -3], [3, 0, 1], k=k) for k in (1, 2)] == [0, 1]
    assert ndcg([-2, -1], [0, 0]) == reciprocal_rank([-2, -1], [0, 0]) == 0


def test_a_constant_model_does_not_profit_from_the_order():
    assert reciprocal_rank([-1, -1, -1], [1, 0, 0]) == pytest.approx(1 / 3)  # as trec_eval


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_that_of_scikit_learn(k):
    rng = random.Random(k)
    for _ in range(20):
        values, gains = rng.sample(range(100), 8), [*rng.choices(range(4), k=7), 1]
        assert ndcg([float(v) for v in values], gains, k=k) == pytest.approx(ndcg_score([gains], [values], k=k))


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("[2] > [3] > [1]", [1, 2, 0]),
        ("[3] > [3] > [9]", [2, 0, 1]),  # repeated and unknown ones are skipped, missing ones follow
        ("3, 1", [2, 0, 1]),
        ("The best is Nice, then Paris.", [1, 0, 2]),
        ("", [0, 1, 2]),
        ("巴黎 > 里昂", [0, 1, 2]),
    ],
)
def test_listed_order(text, order):
    assert listed_order(text, ["Paris", "Nice", "Lyon"]) == order


def test_listed_metrics():
    assert listed_reciprocal_rank("[2] > [1]", ["a", "b"], [1, 0]) == 0.5
    assert listed_ndcg("[2] > [1]", ["a", "b"], [0, 1]) == 1
