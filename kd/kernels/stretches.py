"""Stretches of rows, one after the other."""

import torch
from jaxtyping import Int
from torch import Tensor


def spread(start: Int[Tensor, " S"], end: Int[Tensor, " S"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """The number of its stretch and the row, for each row of the stretches start:end in order."""
    length = end - start
    stretch = torch.arange(len(start), device=start.device).repeat_interleave(length)
    within = torch.arange(len(stretch), device=start.device) - (length.cumsum(0) - length)[stretch]
    return stretch, start[stretch] + within
