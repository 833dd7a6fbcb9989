"""Macro-F1, correlation and calibration against their reference implementations, and by hand."""

import time

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import brier_score_loss, f1_score

from kd.evaluation.agreement import calibration_error
from kd.intervals import resampled
from kd.metrics.calibration import CalibrationError, brier
from kd.metrics.correlation import Correlation
from kd.metrics.labels import MacroF1, named

CLASSES = ["yes", "no", "maybe"]


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    right, given = rng.choice(CLASSES, 50), rng.choice(CLASSES, 50)
    metric = MacroF1()
    rows = np.array([metric(f"It is {g}.", [r], {"choices": CLASSES}) for g, r in zip(given, right, strict=True)])
    assert metric.total(rows) == pytest.approx(f1_score(right, given, average="macro"))


def test_macro_f1_by_hand():
    # yes: 2*1/(1+2) with one yes missed for no; no: 2*1/(2+1)
    rows = np.array([("yes", "yes"), ("no", "yes"), ("no", "no")])
    assert MacroF1().total(rows) == pytest.approx(2 / 3)
    assert MacroF1().total(MacroF1().coded(rows)) == MacroF1().total(rows)
    assert MacroF1().total(np.array([("", "yes")])) == 0


def test_as_many_classes_as_answers_do_not_cost_their_square():
    rows, metric = np.array([(f"class {i // 2}", f"class {i}") for i in range(4000)]), MacroF1()
    started = time.process_time()
    found = resampled(metric.coded(rows), metric.total, resamples=200)
    assert time.process_time() - started < 5  # 0.1 s; four comparisons of 4000 names for each of 4000 take minutes
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes!", "yes"),
        ("I say no, not yes.", "no"),
        ("nothing", ""),  # "no" is no word of it
        ("", ""),
        ("It is not entailed", "not entailed"),  # of "not entailed" and "not" the longer
    ],
)
def test_the_label_that_a_text_names(text, label):
    assert named(text, ["yes", "no", "not", "not entailed"]) == label
    assert named("是的，正面", ["正面", "负面"]) == "正面"


@pytest.mark.parametrize(
    ("name", "theirs"), [("spearman", stats.spearmanr), ("kendall", stats.kendalltau), ("pearson", stats.pearsonr)]
)
def test_correlation(name, theirs):
    rng = np.random.default_rng(1)
    given, right = rng.integers(1, 6, 30), rng.integers(1, 6, 30)
    metric = Correlation(coefficient=name)
    rows = np.array([metric(f"Rating: {g}/", [str(r)]) for g, r in zip(given, right, strict=True)])
    assert metric.total(rows) == pytest.approx(theirs(given, right).statistic)
    assert metric.total(np.array([[3.0, 1.0], [3.0, 2.0]])) == 0  # a constant
    assert metric.total(np.array([[np.nan, 1.0], [np.nan, 2.0]])) == 0  # no number at all
    assert metric.total(np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 3.0]])) == pytest.approx(1)


def test_brier_and_ece():
    assert brier([0.0, 0.0], 0) == pytest.approx(0.5)  # (1/2)^2 + (1/2)^2
    assert brier([0.0, -1e9], 1) == pytest.approx(2)
    p = 1 / (1 + np.exp(-1.5))
    assert brier([1.5, 0.0], 0) == pytest.approx(2 * brier_score_loss([1], [p]))
    rng, metric = np.random.default_rng(2), CalibrationError(bins=15)
    rows = np.array([metric((rng.normal(size=3) * 3).tolist(), 0) for _ in range(200)])
    theirs = calibration_error(torch.tensor(rows[:, 0]), torch.tensor(rows[:, 1]).bool())
    assert metric.total(rows) == pytest.approx(float(theirs))
