"""LoRA folded into the weights it stands beside."""

import copy

from torch import nn

from kd.models.language_model import LanguageModel


def merged(model: LanguageModel) -> LanguageModel:
    """The same model with LoRA folded into its weights; the model itself when it has none."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    model = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
    for name, module in list(model.network.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            module.merge()
            _replace(model.network, name, module.get_base_layer())
    model.network._hf_peft_config_loaded = False
    return model


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
