"""Logits whose rows are computed where they are needed.

A vocabulary of 50k-250k makes `[n, V]` the largest tensor of a step by far; a row exists only inside a chunk.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.kernels.products import times
from kd.types import Head


@runtime_checkable
class Logits(Protocol):
    """`n` rows over a vocabulary of `size` ids: one of the kinds of signals, beside tensors and `SparseLogits`."""

    @property
    def n(self) -> int:
        """Number of rows."""

    @property
    def size(self) -> int:
        """Number of ids."""

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows, in the order of `index`, materialised."""

    def cast(self) -> "Logits":
        """The same, as a constant in autocast's dtype where autocast would convert it at every call."""


@dataclass
class DenseLogits:
    """Logits that exist already."""

    values: Float[Tensor, "n V"]

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.values.shape[1]

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows."""
        return self.values[index]

    def cast(self) -> "DenseLogits":
        """The same: no product is left to be made."""
        return self


@dataclass
class HeadLogits:
    """Last hidden states of the loss rows, and the head that would turn them into logits."""

    hidden: Float[Tensor, "n D"]
    head: Head

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.hidden.shape[0]

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.head.weight.shape[0]

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows, computed now."""
        return finish(project(self.hidden[index], self.head.weight, self.head.bias), self.head)

    @torch.no_grad()
    def cast(self) -> "HeadLogits":
        """The same, as a constant in autocast's dtype: autocast itself would convert a frozen head at every call."""
        if not torch.is_autocast_enabled(self.hidden.device.type):
            return self
        dtype, (weight, bias) = product_dtype(self.hidden), self.head[:2]
        head = self.head._replace(weight=weight.to(dtype), bias=None if bias is None else bias.to(dtype))
        return HeadLogits(self.hidden.to(dtype), head)


def product_dtype(hidden: Float[Tensor, "n D"]) -> torch.dtype:
    """The dtype in which `hidden` is multiplied: autocast's choice where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def project(
    hidden: Float[Tensor, "c D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "c V"]:
    """h W^T + b, in the dtype that autocast would choose."""
    if not torch.is_grad_enabled():
        return times(hidden.to(weight.dtype), weight, bias)
    return torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)


def finish(z: Float[Tensor, "c V"], head: Head) -> Float[Tensor, "c V"]:
    """The logits after the projection, with the architecture's scale (Granite, Cohere) and soft cap (Gemma 2)."""
    if head.scale != 1.0:
        z = z * head.scale
    if head.soft_cap is not None:
        z = head.soft_cap * torch.tanh(z / head.soft_cap)
    return z


def label_logprobs(logits: Float[Tensor, "c V"], labels: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
    """log softmax(logits) at the labels, in at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(-1, labels[:, None])[:, 0] - wide.logsumexp(-1)
