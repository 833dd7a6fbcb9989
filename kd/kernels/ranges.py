"""Ranges of rows, one after the other."""

import torch
from jaxtyping import Int
from torch import Tensor


def spread(start: Int[Tensor, " S"], end: Int[Tensor, " S"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """The index of its range and the row, for each row of the ranges start:end in order."""
    length = end - start
    which = torch.arange(len(start), device=start.device).repeat_interleave(length)
    within = torch.arange(len(which), device=start.device) - (length.cumsum(0) - length)[which]
    return which, start[which] + within
