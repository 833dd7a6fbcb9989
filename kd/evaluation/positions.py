"""Agreement with the teacher, and entropy, by the position of a token in its response.

Positions are counted in tokens from 1, the end token among them, and lie in bins that double in width: 1, 2, 3-4, 5-8,
9-16, ... So a response of T tokens has ceil(log2 T) + 1 bins, 21 for a million.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kd.metrics.table import ON_TEACHER

SUMS = (*ON_TEACHER, "entropy", "teacher_entropy")  # columns of a bin, after the number of its tokens
Bins = list[list[float]]  # [tokens, *SUMS] of each bin


def binned(values: Float[Tensor, "n 5"]) -> Bins:
    """The bins of one response, from the columns of SUMS at its tokens, in their order."""
    if not len(values):
        return []
    place = torch.tensor([position.bit_length() for position in range(len(values))])  # positions count from 0 here
    rows = torch.cat([values.new_ones(len(values), 1), values], dim=1)
    return rows.new_zeros(int(place[-1]) + 1, rows.shape[1]).index_add_(0, place, rows).tolist()


def added(responses: Iterable[Bins]) -> Bins:
    """The bins of several responses together."""
    total: Bins = []
    for bins in responses:
        pairs = zip_longest(total, bins, fillvalue=[0.0] * (1 + len(SUMS)))
        total = [[one + more for one, more in zip(*pair, strict=True)] for pair in pairs]
    return total


def by_position(responses: Iterable[Bins]) -> list[dict[str, Any]]:
    """For each bin: first and last position, tokens (n), and the means of SUMS over its tokens; NaN without a teacher.

    The mean over bins, weighted by n, is that over all tokens.
    """
    means = [(int(n), [total / n for total in sums]) for n, *sums in added(responses)]
    return [
        {"first": 2**i // 2 + 1, "last": 2**i, "n": n, **dict(zip(SUMS, values, strict=True))}
        for i, (n, values) in enumerate(means)
    ]


def of_itself(bins: Sequence[Sequence[float]]) -> Bins:
    """The bins of the teacher, which agrees with itself everywhere; given are its entropies."""
    column = 1 + SUMS.index("entropy")
    return [[one[0], one[0], 0.0, 0.0, one[column], one[column]] for one in bins]


def with_top1(bins: Sequence[Sequence[float]], share: float) -> Bins:
    """The bins with the same top-1 agreement at each token."""
    return [[n, n * share, *rest] for n, _, *rest in bins]
