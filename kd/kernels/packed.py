"""Products with a matrix that stays the same for many small batches, as when text is generated token by token."""

import torch
from jaxtyping import Float
from torch import Tensor


class Product:
    """x W^T + b for a constant W, without gradient.

    On the CPU in float32 and bfloat16 the matrix is copied once into the blocks that oneDNN multiplies fastest: with 8
    rows of x that takes half the time, with 64 nine tenths. A matrix that cannot be packed is multiplied as it is.

    Args:
        weight: in the dtype to multiply in; x is cast to it.
        pack: False where too few products follow for the copy to pay.
    """

    def __init__(self, weight: Float[Tensor, "m D"], bias: Float[Tensor, " m"] | None = None, *, pack: bool = True):
        self.dtype, self.bias = weight.dtype, bias
        self.packed = pack and _can_pack(weight)
        self.weight = weight.detach()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... m"]:
        """The product, in the weight's dtype."""
        x = x.detach().to(self.dtype)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return torch.nn.functional.linear(x, self.weight, self.bias)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operations = torch.ops.mkldnn
    if not (hasattr(operations, "_reorder_linear_weight") and hasattr(operations, "_linear_pointwise")):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and operations._is_mkldnn_bf16_supported())
