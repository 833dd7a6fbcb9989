"""Matrix products: by the faster of two libraries, and in full precision under any autocast.

For float32 on the CPU torch calls MKL, which on AMD processors leaves their widest vector units idle; oneDNN, which
torch carries for other types, does not: 1.1-2.2 times as many products per second, by processor and shape.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LARGE = 2**24  # multiplications, about a fifth of a millisecond: below, the detour through Python costs what it saves


def times(
    x: Float[Tensor, "n D"], weight: Float[Tensor, "m D"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "n m"]:
    """x W^T + b. Constants only: nothing is recorded for a backward pass."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and len(x) and onednn_is_faster():
        return _onednn(x.detach(), weight.detach(), bias)
    return torch.nn.functional.linear(x, weight, bias)


def faster_linear(device: torch.device) -> AbstractContextManager:
    """A context in which the faster library multiplies large `linear` layers in float32 where no gradient is recorded,
    and the gradients themselves.

    It sums a row in one piece, and rounds more for that: through the layers of a student this comes to 1.2e-5 of a
    small gradient in a benchmark, where torch's own products have 8e-6.
    """
    return _FasterLinear() if device.type == "cpu" and onednn_is_faster() else nullcontext()


def wide_product(x: Float[Tensor, "... n d"], y: Float[Tensor, "... d m"]) -> Float[Tensor, "... n m"]:
    """x y in float32 or wider, under autocast too: differences of products would be noise in bfloat16."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(dtype) @ y.to(dtype)


class _FasterLinear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and _served(*args, **(kwargs or {})):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _served(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = type(weight) in (Tensor, torch.nn.Parameter) and input.dtype == weight.dtype == torch.float32
    return plain and input.numel() * len(weight) >= LARGE and not torch.is_autocast_enabled("cpu")


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (_Linear.apply if torch.is_grad_enabled() else _onednn)(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "... D"], weight: Float[Tensor, "m D"], bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _onednn(grad, weight.T) if ctx.needs_input_grad[0] else None,
            _onednn(rows.T, x.reshape(-1, x.shape[-1]).T) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _onednn(x: Float[Tensor, "... D"], weight: Float[Tensor, "m D"], bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@lru_cache
def onednn_is_faster() -> bool:
    """True on AMD's processors: by the maker and not by timing, so that a run continues as it began."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    described = Path("/proc/cpuinfo")
    return described.exists() and "AuthenticAMD" in described.read_text()
