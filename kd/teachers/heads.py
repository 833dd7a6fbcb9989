"""A teacher's head as tensors with names, for files and for the wire."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from kd.types import Head


def head_tensors(head: Head) -> dict[str, Tensor]:
    """The tensors of a head by the names under which they are stored."""
    numbers = {name: getattr(head, name) for name in ("scale", "soft_cap")}
    tensors = {
        name: tensor.contiguous().cpu()
        for name, tensor in head._asdict().items()
        if name in ("weight", "bias") and tensor is not None
    }
    return tensors | {n: torch.tensor(float(x), dtype=torch.float64) for n, x in numbers.items() if x is not None}


def read_head(path: Path) -> Head:
    """The head in a file of `head_tensors`."""
    tensors = load_file(path)
    scale, soft_cap = (tensors[name].item() if name in tensors else None for name in ("scale", "soft_cap"))
    return Head(tensors["weight"], tensors.get("bias"), 1.0 if scale is None else scale, soft_cap)


def moved(head: Head, device: torch.device) -> Head:
    """The head on a device."""
    bias = None if head.bias is None else head.bias.to(device)
    return head._replace(weight=head.weight.to(device), bias=bias)
