"""Evaluation of row-wise terms without all logits in memory."""

from kd.kernels.chunks import over_chunks

__all__ = ["over_chunks"]
