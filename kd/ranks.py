"""Sums over the ranks of a run, for what is computed where no trainer is at hand."""

from functools import lru_cache

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on every rank; `values` themselves where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def sum_over_hosts(values: Tensor) -> Tensor:
    """The same of a tensor in the host's memory, for which no rank waits for its GPU."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    total = values.clone()
    dist.all_reduce(total, group=_hosts(dist.group.WORLD))
    return total


@lru_cache(maxsize=1)
def _hosts(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group in which the ranks of `world` exchange what is in their hosts' memory."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")
