"""Matrix products: without gradient by the faster of two libraries, and in full precision whatever autocast says.

For float32 on the CPU torch calls MKL, which on AMD processors leaves their widest vector units idle; oneDNN, which
torch carries for other types, does not: 1.1-2.2 times as many products per second in this shape (rows x width x ids).
"""

from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


def times(
    x: Float[Tensor, "n D"], weight: Float[Tensor, "m D"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "n m"]:
    """x W^T + b. Constants only: nothing is recorded for a backward pass."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and len(x) and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x.detach(), weight.detach(), bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def wide_product(x: Float[Tensor, "... n d"], y: Float[Tensor, "... d m"]) -> Float[Tensor, "... n m"]:
    """x y in float32 or wider, under autocast too: where differences of products are what counts, bfloat16 is noise."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ y.to(dtype)


@lru_cache
def onednn_is_faster() -> bool:
    """By the processor's maker and not by a stopwatch, so that a run goes on as it began."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    described = Path("/proc/cpuinfo")
    return described.exists() and "AuthenticAMD" in described.read_text()
