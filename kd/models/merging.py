"""LoRA merged into the weights that it adapts."""

import copy
from typing import Any

import torch
from torch import nn

from kd.models.language_model import LanguageModel

WAYS = "name other modules in lora.target_modules, and leave lora.modules_to_save out"


def merged(model: LanguageModel) -> LanguageModel:
    """The same model with LoRA folded into its weights; the model itself when it has none."""
    if not _has_adapters(model):
        return model
    model = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
    for name, module in _outermost(model.network):
        _replace(model.network, name, _folded(module))
    model.network._hf_peft_config_loaded = False
    return model


def check_mergeable(model: LanguageModel) -> None:
    """Raises ValueError if merging would not restore the architecture that the adapters were added to.

    It is tried on shapes alone, on the device "meta", so that the exported network is known before the first step.
    """
    if not _has_adapters(model):
        return
    try:
        found = merged(model).network.state_dict().keys()
    except (AttributeError, NotImplementedError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{_of(model)} could not be exported: {' '.join(str(error).split())}; {WAYS}") from None
    with torch.device("meta"):
        plain = type(model.network)(model.network.config).state_dict().keys()
    if strange := sorted(found ^ plain):
        raise ValueError(f"{_of(model)} would be exported with {strange[0]} beside its weights; {WAYS}")


def _has_adapters(model: LanguageModel) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())


def _of(model: LanguageModel) -> str:
    return f"student.model.lora: {type(model.network).__name__} with these adapters"


def _outermost(network: nn.Module) -> list[tuple[str, Any]]:
    """The wrappers of peft by name, without those inside another one, as fused experts have them."""
    found: list[tuple[str, Any]] = []
    for name, module in network.named_modules():
        inside = bool(found) and name.startswith(f"{found[-1][0]}.")
        if not inside and hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            found.append((name, module))
    return found


def _folded(wrapper: Any) -> nn.Module:
    """The module inside, after the adapters of this wrapper and of those between were added to its weights."""
    base = wrapper.get_base_layer()
    while wrapper is not base:
        wrapper.merge()
        wrapper = wrapper.base_layer
    return base


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
