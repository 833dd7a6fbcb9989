"""Sums over the ranks of a run, for what is computed where no trainer is at hand."""

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on every rank; `values` themselves where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total
