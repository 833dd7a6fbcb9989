"""The network of a student or teacher: a checkpoint, a pruned one, or random weights."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kd.data.images import vision_of
from kd.models.hardware import Attention, Bits, check_attention, quantised, recomputing
from kd.models.language_model import LanguageModel, check_head
from kd.models.tokenizers import load_tokenizer, tokenizer_of_bytes
from kd.models.vision import auto_model, check_inputs, config_fields, is_vision
from kd.sources.addresses import keys_of, model_folder

DType = Literal["float32", "bfloat16", "float64"]
FITTED = ("eva", "corda", "loftq", "lora_ga")  # starts of adapters that need more than the weights
FACTORED = ("pissa", "olora", "mica")  # and those that are factors of the weights
Rule = Literal["even", "first", "last", "ends"]


def pretrained(
    *,
    source: str | Mapping[str, Any],
    dtype: DType = "float32",
    lora: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    attn_implementation: Attention | None = None,
    gradient_checkpointing: bool = False,
    load_in: Bits | None = None,
) -> LanguageModel:
    """A checkpoint, unchanged.

    source: an address, or {address, member?, sha256?, adapter?} of `kd.sources.addresses`. lora: fields of peft's
    LoraConfig. chat_template: a Jinja template, or the path of one, instead of the checkpoint's. template_kwargs:
    variables of the template, such as {enable_thinking: false}; they become its defaults, in the exported tokenizer
    too. attn_implementation: transformers' name of an attention; None: its choice. gradient_checkpointing: whether
    activations are recomputed. load_in: 8bit or 4bit, of a model that is not trained (`kd.models.hardware`).
    """
    check_attention(attn_implementation)
    extra = quantised(load_in, dtype, lora=lora is not None)
    extra |= {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    folder = model_folder(**keys_of(source))
    tokenizer = load_tokenizer(folder, chat_template, template_kwargs)
    return _finish(_load(folder, dtype, **extra), tokenizer, lora, gradient_checkpointing)


def pruned(
    *,
    source: str | Mapping[str, Any],
    layers: int | Sequence[int],
    rule: Rule = "even",
    ffn: int | None = None,
    dtype: DType = "float32",
    lora: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    """A checkpoint with fewer layers and, with `ffn`, narrower feed-forward blocks; the weights kept are copied.

    layers: the number of layers that stay, or their indices. rule: the layers for a number: `even` (first and last
    included), `first`, `last`, `ends` (half from each end). ffn: neurons kept in each block, those with the
    largest product of weight norms. Others: see `pretrained`.
    """
    folder = model_folder(**keys_of(source))
    tokenizer = load_tokenizer(folder, chat_template, template_kwargs)
    network = _load(folder, dtype)
    if not hasattr(network.config, "num_hidden_layers"):
        raise ValueError(
            f"{folder} holds model_type={network.config.model_type!r}, whose layers are those of several models; "
            "save its language model in a folder of its own (save_pretrained), or take student=pretrained"
        )
    kept = kept_layers(network.config.num_hidden_layers, layers, rule)
    network = _cut_depth(network, kept)
    if ffn is not None:
        network = _cut_ffn(network, ffn)
    return _finish(network, tokenizer, lora, gradient_checkpointing)


def scratch(
    *,
    architecture: Mapping[str, Any],
    tokenizer: str | Mapping[str, Any] = "bytes",
    dtype: DType = "float32",
    lora: None = None,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    """Random weights. `architecture` is a transformers config: `model_type` and its fields (vocabulary is filled in).

    tokenizer: "bytes", or the address or {address, ...} of a checkpoint whose tokenizer is used; a vision-language
    architecture takes its processor of images, too. Others: see `pretrained`.
    """
    if tokenizer == "bytes":
        words = tokenizer_of_bytes(architecture, chat_template, template_kwargs)
    else:
        words = load_tokenizer(model_folder(**keys_of(tokenizer)), chat_template, template_kwargs)
    fields = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    known = config_fields(architecture, {**fields, "vocab_size": len(words)}, words)
    config = AutoConfig.for_model(**known)
    _check_kind(config, words)
    network = auto_model(config).from_config(config, dtype=getattr(torch, dtype))
    return _finish(network, words, lora, gradient_checkpointing)


def shaped(
    config: Any,
    *,
    layers: int | Sequence[int] | None = None,
    rule: Rule = "even",
    ffn: int | None = None,
    dtype: DType = "float32",
    lora: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A network of a transformers config without a checkpoint, cut and adapted as `pruned` and `pretrained` do it.

    It is meant for the device "meta", where a network has shapes and no weights.
    """
    network = auto_model(config).from_config(config, dtype=getattr(torch, dtype))
    if layers is not None:
        network = _cut_depth(network, kept_layers(config.num_hidden_layers, layers, rule))
    if ffn is not None:
        network = _cut_ffn(network, ffn)
    return network if lora is None else _with_lora(network, LoraConfig(task_type="CAUSAL_LM", **lora))


def kept_layers(depth: int, layers: int | Sequence[int], rule: Rule) -> list[int]:
    """Indices of the layers that stay, in order. Raises ValueError when there are not that many."""
    if not isinstance(layers, int):
        if not layers or not all(0 <= layer < depth for layer in layers) or sorted(set(layers)) != list(layers):
            raise ValueError(f"layers={list(layers)} must be increasing indices below the checkpoint's depth {depth}")
        return list(layers)
    if not 1 <= layers <= depth:
        raise ValueError(f"layers={layers} is not between 1 and the checkpoint's depth {depth}")
    if rule == "first":
        return list(range(layers))
    if rule == "last":
        return list(range(depth - layers, depth))
    if rule == "ends":
        front = (layers + 1) // 2
        return [*range(front), *range(depth - (layers - front), depth)]
    return [round(i * (depth - 1) / max(layers - 1, 1)) for i in range(layers)]


def _load(folder: Path, dtype: DType, **extra: Any) -> PreTrainedModel:
    """The checkpoint; on the device "meta" its shapes alone."""
    config = AutoConfig.from_pretrained(folder)
    _check_causal(config, folder)
    if _is_outline():
        return auto_model(config).from_config(config, dtype=getattr(torch, dtype))
    network = auto_model(config).from_pretrained(folder, dtype=getattr(torch, dtype), **extra)
    _check_finite(network, folder)
    return network


def _check_causal(config: Any, folder: Path) -> None:
    """Raises ValueError for a checkpoint that `transformers` has no language model for, which reads left to right."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or is_vision(config):
        return
    if getattr(config, "vision_config", None) is not None:
        what = "is a model of images that generates no text from them"
        remedy = "take a vision-language checkpoint (SmolVLM, Idefics3, LLaVA)"
    elif config.is_encoder_decoder:
        what, remedy = "is an encoder-decoder", "take a decoder-only checkpoint (Llama, Qwen, Gemma, ...)"
    else:
        what, remedy = "is no causal language model of transformers", "take a decoder-only checkpoint"
    raise ValueError(f"{folder} holds model_type={config.model_type!r}, which {what}; {remedy}")


def _check_finite(network: PreTrainedModel, folder: Path) -> None:
    """Raises ValueError for a checkpoint with weights that are no numbers."""
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            raise ValueError(
                f"{folder}: {count} of {weight.numel()} weights of {name} are NaN or infinite; take a checkpoint from "
                "before they were lost, or download this one again"
            )


def _is_outline() -> bool:
    return torch.get_default_device().type == "meta"


def _check_kind(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for an architecture that reads images without a processor, or the other way round."""
    if is_vision(config) != (vision_of(tokenizer) is not None):
        shown = is_vision(config)
        reads, has = ("reads images", "no processor of them") if shown else ("reads no images", "one of them")
        raise ValueError(
            f"architecture.model_type={config.model_type} {reads}, but its tokenizer's checkpoint has {has}; take "
            "tokenizer=bytes, or that of a checkpoint of the same kind"
        )


def _finish(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: Mapping[str, Any] | None, recomputes: bool
) -> LanguageModel:
    check_inputs(network)
    if recomputes:
        recomputing(network)
    if not _is_outline():
        check_head(network)
    if lora is not None:
        network = _with_lora(network, LoraConfig(task_type="CAUSAL_LM", **lora))
    return LanguageModel(network, tokenizer)


def _with_lora(network: PreTrainedModel, config: LoraConfig) -> PreTrainedModel:
    _check_lora(config, network.dtype)
    network = cast(PreTrainedModel, get_peft_model(network, config).get_base_model())
    if hasattr(network.get_output_embeddings(), "get_delta_weight") and (config.use_dora or config.lora_bias):
        raise ValueError(
            "lora with use_dora or lora_bias on the output head is not one weight matrix, which the head must be; "
            "leave the head out of lora.target_modules"
        )
    _check_tied(network)
    for name, parameter in network.named_parameters():
        if "lora_" not in name:  # of the adapters, what peft trains: MiCA's B stays as it is
            parameter.requires_grad_(False)
    return network


def _check_lora(config: LoraConfig, dtype: torch.dtype) -> None:
    """Raises ValueError for adapters that could not be trained, initialised, or merged into the weights."""
    patterns = {f"alpha_pattern.{name}": alpha for name, alpha in (config.alpha_pattern or {}).items()}
    for key, alpha in {"lora_alpha": config.lora_alpha, **patterns}.items():
        if not alpha > 0:
            raise ValueError(f"lora.{key}={alpha}: adapters scaled by it would not learn; set it above 0")
    if not 0 <= config.lora_dropout < 1:
        raise ValueError(
            f"lora.lora_dropout={config.lora_dropout}: the share of the adapters' inputs that is dropped; keep it "
            "between 0 and 1, and below 1, at which they learn nothing"
        )
    start = str(config.init_lora_weights)
    if start.startswith(FITTED):
        raise ValueError(
            f"lora.init_lora_weights={start}: it fits adapters to data or to quantized weights, which are not given "
            "here; take true, gaussian, orthogonal, pissa or olora"
        )
    if start.startswith(FACTORED) and dtype == torch.float64:
        raise ValueError(
            f"lora.init_lora_weights={start}: peft factors weights in float32, and these are float64; set "
            "dtype=float32, or take true, gaussian or orthogonal"
        )
    if config.bias != "none":
        raise ValueError(f"lora.bias={config.bias}: adapters alone are trained, and biases stay frozen; set it to none")
    if config.layer_replication:
        raise ValueError(
            f"lora.layer_replication={config.layer_replication}: layers that share weights have adapters of their own, "
            "which cannot be folded into them; leave it out"
        )


def _check_tied(network: PreTrainedModel) -> None:
    """Raises ValueError for adapters on one of two modules that share a weight: folded in, they would change both."""
    ends: list[Any] = [network.get_input_embeddings(), network.get_output_embeddings()]
    plain = [end.get_base_layer() if hasattr(end, "get_base_layer") else end for end in ends]
    if plain != ends and plain[0].weight is getattr(plain[1], "weight", None):
        raise ValueError(
            f"lora on the embeddings or the head of {type(network).__name__}, which share one weight "
            "(tie_word_embeddings), cannot be folded into it; leave both out of lora.target_modules"
        )


def _cut_depth(network: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    prefix = _layers_name(network)
    config = copy.deepcopy(network.config)
    depth = config.num_hidden_layers
    config.num_hidden_layers = len(kept)
    for name, value in config.to_dict().items():  # layer_types, no_rope_layers, ...: one entry per layer
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[layer] for layer in kept])
    position = {str(layer): str(i) for i, layer in enumerate(kept)}
    state = {}
    for name, value in network.state_dict().items():
        match = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
        if match is None:
            state[name] = value
        elif match[1] in position:
            state[f"{prefix}.{position[match[1]]}.{match[2]}"] = value
    return _rebuilt(network, config, state)


def _cut_ffn(network: PreTrainedModel, width: int) -> PreTrainedModel:
    config = copy.deepcopy(network.config)
    state = dict(network.state_dict())
    blocks = [name.removesuffix("gate_proj.weight") for name in state if name.endswith("mlp.gate_proj.weight")]
    if not blocks:
        raise ValueError(
            f"{type(network).__name__} has no gated feed-forward blocks (mlp.gate_proj) to narrow; set ffn=null"
        )
    if not 1 <= width <= config.intermediate_size:
        raise ValueError(
            f"ffn={width} is not between 1 and the checkpoint's intermediate_size {config.intermediate_size}"
        )
    config.intermediate_size = width
    for block in blocks:
        _keep_neurons(state, block, width)
    return _rebuilt(network, config, state)


def _keep_neurons(state: dict[str, Tensor], block: str, width: int) -> None:
    gate, up, down = (f"{block}{part}.weight" for part in ("gate_proj", "up_proj", "down_proj"))
    salience = state[gate].norm(dim=1) * state[up].norm(dim=1) * state[down].norm(dim=0)
    kept = salience.topk(width).indices.sort().values
    for name in (gate, up, f"{block}gate_proj.bias", f"{block}up_proj.bias"):
        if name in state:
            state[name] = state[name][kept]
    state[down] = state[down][:, kept]


def _rebuilt(network: PreTrainedModel, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A new module tree with these weights: slicing the old tree would leave each layer's cache index behind.

    It is made in the old one's dtype, not cast to it, for a cast would round the rotary frequencies too.
    """
    smaller = AutoModelForCausalLM.from_config(config, dtype=network.dtype)
    smaller.load_state_dict(state)
    smaller.generation_config = copy.deepcopy(network.generation_config)
    return smaller


def _layers_name(network: PreTrainedModel) -> str:
    depth = network.config.num_hidden_layers
    names = [n for n, m in network.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not names:
        raise ValueError(f"{type(network).__name__} has no list of {depth} layers to prune; use student=pretrained")
    return names[0]
