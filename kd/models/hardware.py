"""Options of a network that depend on the machine: fused attention, quantised weights, recomputed activations."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from kd.models.packing import recompute

Attention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"]
Bits = Literal["8bit", "4bit"]
OPTIONS = ("attn_implementation", "gradient_checkpointing", "load_in")  # of a model's node; they change no architecture
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # by attention


def check_attention(attention: Attention | None) -> None:
    """Raises ValueError, naming what is missing, for an attention that this machine cannot compute."""
    package = PACKAGES.get(str(attention))
    if package is not None:
        remedy = "take sdpa, which needs neither"
        _check(f"attn_implementation={attention}", package, remedy)


def quantised(load_in: Bits | None, dtype: str, *, lora: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` for weights in 8 or 4 bits, which are not trained; none for None.

    They are products of bitsandbytes: rounded by blocks, with products computed in `dtype` (NF4 in 4 bits, arXiv
    2305.14314). The model is another one than the whole one, and is named so.

    Raises ValueError, naming what is missing, where this machine cannot compute with them.
    """
    if load_in is None:
        return {}
    _check(f"load_in={load_in}", "bitsandbytes", "take load_in=null and dtype=bfloat16, which needs twice the memory")
    if lora:
        raise ValueError(
            f"load_in={load_in} with lora: adapters could not be merged at the end; set one of them to null"
        )
    if load_in == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device()}}


def recomputing(network: PreTrainedModel) -> None:
    """Has the network recompute each layer's activations in the backward pass: less memory for a third more FLOP.

    Raises ValueError for an architecture without it.
    """
    if not network.supports_gradient_checkpointing:
        raise ValueError(
            f"gradient_checkpointing=true: {type(network).__name__} does not recompute its layers; set it to false, "
            "and lower data.max_tokens"
        )
    recompute(network)


def _check(value: str, package: str, remedy: str) -> None:
    lacking = [] if torch.cuda.is_available() else ["a CUDA GPU"]
    lacking += [] if find_spec(package) is not None else [f"the package {package}"]
    if lacking:
        raise ValueError(f"{value} needs {' and '.join(lacking)}, which this machine lacks; {remedy}")
