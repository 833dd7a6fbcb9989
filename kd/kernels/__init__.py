"""Evaluating row-wise terms without ever holding all logits."""

from kd.kernels.chunks import over_chunks

__all__ = ["over_chunks"]
