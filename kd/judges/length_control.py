"""The win rate of answers as a judge would give it, were they as long as those that they are compared with.

Judges prefer long answers. AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, section 3) fits verdicts by

    log P(win) / P(loss) = theta + phi tanh(d / s) + difficulty of the instruction,

d being the difference in length and s its standard deviation, and reports the mean P(win) at d = 0. The difficulty is
estimated over many models. It is left out here, where one is compared with one, so that this is 1 / (1 + exp(-theta)).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import root
from scipy.special import expit

from kd.intervals import Score, mean, resampled

# of theta: so little that it is finite where all win; of phi: scikit-learn's default. Where a judge goes by length
# alone, less would fit a step near d = 0, whose place is chance. (The paper penalises phi, so that short answers do not
# pay.)
PENALTY = np.array([0.01, 1.0])


def length_controlled(rows: np.ndarray) -> float:
    """P(win) between answers of equal length, by a logistic regression with a ridge penalty.

    Minimised is -sum_i [w_i log p_i + (1 - w_i) log(1 - p_i)] + (a theta^2 + b phi^2) / 2 with a, b = PENALTY. It is
    strictly convex, so there is one minimum, also where lengths and verdicts are separable.

    Args:
        rows: `[n 2]`: the verdict w, 1, 0 or 0.5 of a tie; the length of the answer less the other's, in characters.
    """
    won, longer = rows.T
    spread = np.std(longer, ddof=1) if len(longer) > 1 else 0.0
    design = np.stack([np.ones(len(rows)), np.tanh(longer / spread) if spread else np.zeros(len(rows))], axis=1)

    def slope(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and its derivative."""
        p = expit(design @ weights)
        return design.T @ (p - won) + PENALTY * weights, (design.T * (p * (1 - p))) @ design + np.diag(PENALTY)

    return float(expit(root(slope, np.zeros(2), jac=True, tol=1e-10).x[0]))


def length_controlled_score(rows: np.ndarray, groups: Sequence[str], **interval: Any) -> Score:
    """The length-controlled win rate with its interval by a bootstrap over groups, in which each draw is fitted.

    Where all verdicts are alike there is no effect of length to be controlled: it is the win rate with its interval.
    """
    if len(np.unique(rows[:, 0])) < 2:
        return mean(rows[:, 0], groups, **interval)
    return resampled(rows, length_controlled, groups, **interval)
