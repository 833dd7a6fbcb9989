"""Agreement of the numbers that answers give with those of people: Spearman, Kendall, Pearson."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from kd.metrics.corpus import CorpusMetric
from kd.metrics.final_number import final_number

VERSION = 2  # an answer alone has no correlation
COEFFICIENTS = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}


class Correlation(CorpusMetric):
    """A correlation coefficient of the answers' final numbers with the right ones, between -1 and 1.

    A row has both numbers. An answer without a number gets the mean of the others; of a constant, or fewer than two
    rows, the coefficient is 0.

    Args:
        coefficient: `spearman` (ranks), `kendall` (tau-b, of pairs), or `pearson`.
    """

    of_one = False

    def __init__(self, *, coefficient: Literal["spearman", "kendall", "pearson"] = "spearman"):
        self.coefficient = COEFFICIENTS[coefficient]

    def __call__(self, text: str, answers: Sequence[str]) -> tuple[float, float]:
        """The number of one answer, NaN where it has none, and the right one."""
        found = final_number(text)
        return float("nan") if found is None else float(found), float(answers[0])

    def total(self, rows: np.ndarray) -> float:
        """The coefficient of rows (given, right)."""
        given, right = rows.astype(float).T
        given = np.where(np.isnan(given), np.nanmean(given) if not np.isnan(given).all() else 0.0, given)
        if len(rows) < 2 or np.ptp(given) == 0 or np.ptp(right) == 0:
            return 0.0
        return float(self.coefficient(given, right).statistic)
