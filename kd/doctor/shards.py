"""Tensors of networks in bytes, and what is whole on a device for a while where each holds a part (FSDP2)."""

from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn

from kd.doctor.layout import Layout
from kd.models.language_model import WHOLE_ROWS, LanguageModel
from kd.models.sharding import blocks

IN_FLIGHT = 2  # blocks of a sharded model whose weights are gathered at once: the one computed, and the next
SUMMED = 4  # bytes of a gradient on its way to the other devices


def stored(module: nn.Module) -> int:
    """Bytes of parameters and buffers; tied ones count once."""
    return sum({storage(t): t.untyped_storage().nbytes() for t in tensors(module)}.values())


def storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage, on the device "meta", too, where all addresses are 0."""
    return tensor.untyped_storage()._cdata


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def trained_bytes(module: nn.Module) -> int:
    """Bytes of the weights that are trained, LoRA's alone where there is one."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def autocast(precision: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which a network of that type computes in training."""
    return torch.bfloat16 if precision.endswith("mixed") and dtype == torch.float32 else dtype


def narrowed(model: LanguageModel, precision: str, size: int) -> int:
    """Bytes of `size` bytes of a network's weights, in the type that is computed in."""
    dtype = model.network.dtype
    return size * autocast(precision, dtype).itemsize // dtype.itemsize


def gathered(
    student: LanguageModel, frozen: Sequence[LanguageModel], layout: Layout, precision: str, fields: Set[str]
) -> int:
    """Bytes of weights and gradients that are whole on a device for a while in training.

    In the type that is computed in, the student's embedding, norm and head from the forward to the backward pass, its
    blocks two at a time (or all, if they are not resharded), and the gradients of a block, once more in float32 when
    they are summed; of the frozen models that are read the same without gradients, where they are divided, too.
    fields: those of the student that the objective reads; attention keeps all blocks (`kd.training.sharding`).
    """
    if not layout.sharded:
        return 0
    block, rest = _block(student), _rest(student)
    reshards = layout.reshards and not fields & WHOLE_ROWS
    held = IN_FLIGHT * block if reshards else stored(student) - rest
    summed = SUMMED * block // student.network.dtype.itemsize
    read = sum(narrowed(one, precision, IN_FLIGHT * _block(one) + _rest(one)) for one in frozen if layout.teacher > 1)
    return narrowed(student, precision, rest + held + block) + summed + read


def _block(model: LanguageModel) -> int:
    return max(map(stored, blocks(model.network)), default=0)


def _rest(model: LanguageModel) -> int:
    """Bytes outside of the blocks."""
    return stored(model) - sum(map(stored, blocks(model.network)))
