"""Weights that are sharded over ranks (torch's FSDP2), and the one place where they are made whole.

A sharded model is read as any other: each block's weights are gathered when the block is computed, those of the rest
(embedding, last norm, head) when the model is, and the latter stay whole until the backward pass, so that what is
computed of the head after the forward pass (`kd.kernels`) reads a plain matrix. Every reading is a collective: all
ranks have to make it. Within `gathered` a model is read without one.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from kd.types import Sequences

_reshards: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # after a forward pass


@dataclass(frozen=True)
class Sharding:
    """The settings of sharded models (`trainer.sharding`).

    reshard_after_forward: whether a block's gathered weights are freed after its forward pass and gathered again for
        the backward pass (ZeRO-3). False: they are kept in between (ZeRO-2), which takes more memory and a third less
        communication. The teacher has no backward pass, and its blocks' weights are always freed.
    offload_teacher: whether the teacher's shards are in host memory and copied to the device block by block.
    """

    reshard_after_forward: bool = True
    offload_teacher: bool = False


def shard(
    model: Any,
    mesh: DeviceMesh,
    *,
    reshard_after_forward: bool = True,
    offload: bool = False,
    gathered_as: torch.dtype | None = None,
) -> None:
    """Shard a `LanguageModel` in place over the ranks of a mesh, block by block.

    offload: whether the shards are kept in host memory.
    gathered_as: the type in which weights are gathered and multiplied; their gradients are summed over ranks in
        float32. None: their own.
    """
    settings: dict[str, Any] = {"mesh": mesh, "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy()}
    if gathered_as is not None:
        settings["mp_policy"] = MixedPrecisionPolicy(gathered_as, torch.float32, cast_forward_inputs=False)
    parts = {block: reshard_after_forward for block in blocks(model.network)} | {model: False}
    for module, reshards in parts.items():
        fully_shard(module, reshard_after_forward=reshards, **settings)
        _reshards[module] = reshards
    one = torch.zeros(1, 1, dtype=torch.long, device=mesh.device_type)
    with torch.no_grad():  # the first module that is called becomes the root: the model has to, not a block
        model(Sequences(one, one, one.bool(), torch.ones(1, dtype=torch.long, device=one.device)), frozenset())
    reshard(model)


def blocks(network: Any) -> list[nn.Module]:
    """The blocks of a network of `transformers`, which declares their classes; none inside another one."""
    names, found, inside = set(network._no_split_modules or ()), list[nn.Module](), set[nn.Module]()
    for module in network.modules():
        if type(module).__name__ in names and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def twin(model: Any) -> Any:
    """A copy of a `LanguageModel` with parameters of its own that share their memory with the model's."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**shared, id(model.tokenizer): model.tokenizer})


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """All weights of the sharded among the models, whole on every rank: a rank may read them as often as it likes.

    Entered by all ranks. What is no module, or not sharded, is left alone.
    """
    parts = _parts(models)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(_reshards[part], recurse=False)
            part.reshard()


def reshard(*models: Any) -> None:
    """Free the weights that are whole, so that the parameters are those that the optimizer changes."""
    for part in _parts(models):
        part.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this rank holds a part of the tensor alone."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all ranks, which all call it; a tensor that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parted_as(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that is whole on every rank, where `like` is sharded; else the tensor itself."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all the tensors together, sharded ones over all ranks."""
    norms = [whole(nn.utils.get_total_norm(group)) for group in _by_kind(tensors)]
    return torch.stack(norms).norm() if len(norms) > 1 else next(iter(norms), torch.zeros(()))


def clip_gradients(parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
    """Scale all gradients alike so that their norm is at most `bound`; returns the norm that they had."""
    norm = total_norm(p.grad for p in parameters if p.grad is not None)
    for group in _by_kind(parameters):
        nn.utils.clip_grads_with_norm_(group, bound, norm)
    return norm


def _by_kind(tensors: Iterable[Any]) -> list[list[Any]]:
    """Sharded tensors and others apart: one operation takes a list of either kind."""
    kinds: dict[bool, list[Any]] = {}
    for tensor in tensors:
        kinds.setdefault(is_sharded(tensor), []).append(tensor)
    return list(kinds.values())


def _parts(models: Iterable[Any]) -> list[Any]:
    modules = (part for model in models if isinstance(model, nn.Module) for part in model.modules())
    return list(dict.fromkeys(part for part in modules if isinstance(part, FSDPModule)))
