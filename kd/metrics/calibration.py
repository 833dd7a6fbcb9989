"""The calibration of the probabilities that a model gives to choices, p_i = softmax(logprobs)_i."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from kd.metrics.corpus import CorpusMetric


def brier(logprobs: Sequence[float], answer_index: int) -> float:
    """sum_i (p_i - [i is right])^2 (Brier 1950): 0 for a certain right choice, 2 for a certain wrong one."""
    errors = softmax(np.asarray(logprobs, dtype=float))
    errors[answer_index] -= 1
    return float((errors**2).sum())


class CalibrationError(CorpusMetric):
    """sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)| over equally wide bins (Guo et al. 2017, arXiv 1706.04599).

    A row has the confidence max_i p_i and whether that choice is right.

    Args:
        bins: number of bins, open on the left.
    """

    def __init__(self, *, bins: int = 15):
        self.bins = bins

    def __call__(self, logprobs: Sequence[float], answer_index: int) -> tuple[float, float]:
        """Confidence and whether it is right."""
        p = softmax(np.asarray(logprobs, dtype=float))
        return float(p.max()), float(p.argmax() == answer_index)

    def total(self, rows: np.ndarray) -> float:
        """The error of rows (confidence, right)."""
        confidence, right = rows.astype(float).T
        place = np.clip(np.ceil(confidence * self.bins).astype(int) - 1, 0, self.bins - 1)
        return float(np.abs(np.bincount(place, weights=confidence - right)).sum() / len(rows))
