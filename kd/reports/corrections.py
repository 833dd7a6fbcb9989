"""P-values corrected for the number of comparisons."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from kd.intervals import Numbers


def holm(values: Numbers) -> np.ndarray:
    """P-values under which the chance of any false rejection is kept, whatever their dependence (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1; none falls below an earlier one, or exceeds 1. NaN, of a
    comparison that could not be made, stays and does not count.
    """
    found = np.asarray(values, dtype=float)
    known = np.flatnonzero(~np.isnan(found))
    order = known[np.argsort(found[known], kind="stable")]
    corrected = found.copy()
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * found[order]))
    return corrected


def benjamini_hochberg(values: Numbers) -> np.ndarray:
    """P-values under which the expected share of false rejections is kept (Benjamini & Hochberg 1995)."""
    found = np.asarray(values, dtype=float)
    known = ~np.isnan(found)
    corrected = found.copy()
    if known.any():
        corrected[known] = stats.false_discovery_control(found[known])
    return corrected


def uncorrected(values: Numbers) -> np.ndarray:
    """The p-values as they are."""
    return np.asarray(values, dtype=float)


CORRECTIONS: dict[str, tuple[str, Callable[[Numbers], np.ndarray]]] = {
    "holm": ("Holm's correction", holm),
    "bh": ("Benjamini and Hochberg's correction", benjamini_hochberg),
    "none": ("no correction", uncorrected),
}
