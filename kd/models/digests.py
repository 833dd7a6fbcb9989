"""Digests of models by content, for the cache of scores and the table's digests."""

import hashlib
import json
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Fields of a transformers config that describe the origin of a model, not its computation.
_ORIGIN = ("_name_or_path", "architectures", "transformers_version", "use_cache")


@runtime_checkable
class Identified(Protocol):
    """A model whose content has a digest."""

    def identity(self) -> str:
        """A digest of the content."""


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict, on any device.

    Tied weights are read once. About a second per gigabyte.
    """
    whole = hashlib.sha256()
    seen: dict[tuple, str] = {}
    for name, tensor in sorted(module.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen[place] = hashlib.sha256(_bytes(tensor)).hexdigest()
        line = [name, str(tensor.dtype), list(tensor.shape), seen[place]]
        whole.update(json.dumps(line).encode())
    return whole.hexdigest()


def network_digest(network: PreTrainedModel) -> str:
    """sha256 over the weights and the network's config: equal weights have other outputs under another config.

    (Two models drawn from one seed that differ in `rope_theta` alone have the same weights.)
    """
    config = network.config.to_dict()
    fields = {name: value for name, value in config.items() if name not in _ORIGIN}
    text = json.dumps([weights_digest(network), fields], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def model_digest(system: Identified) -> str:
    """The digest of a model, or of an ensemble of several."""
    return system.identity()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)  # without copies where it lies on the CPU already
    return flat.view(torch.uint8).numpy().data
