"""Decoding for networks of Llama's kind without the library's modules: fewer, larger products, packed weights.

Optional: `readable` is true for a network whose arithmetic is implemented here, without adapters of an unknown sort,
hooks, or replaced modules. All other networks are decoded by their own forward, with the same results.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention, silu
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model
from transformers.activations import SiLUActivation

from kd.generators.decoding import Decoder, LogitsHead, Store
from kd.kernels.logits import product_dtype
from kd.kernels.packed import Product
from kd.models.language_model import LanguageModel, effective_weight

_KNOWN = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
_PARTS = (
    *(nn.ModuleList, nn.ModuleDict, nn.ParameterDict, nn.Embedding, nn.Linear, nn.SiLU, SiLUActivation),
    *(LoraLinear, nn.Dropout, nn.Identity),
)
_WORTH_SHARING = 64  # tokens that need not be read again, for which another pass through the layers pays
_LASTING = ("default", "linear", "llama3", "yarn")  # rotations that do not depend on how long the text becomes


def readable(model: LanguageModel) -> bool:
    """True if the network's computation is implemented here."""
    backbone: Any = getattr(model.network, model.network.base_model_prefix)
    if type(backbone) not in _KNOWN or not _usual(backbone.config):
        return False
    if not all(_bare(module) and _known(module, backbone) for module in backbone.modules()):
        return False
    layers = [layer for block in backbone.layers for layer in _linear_layers(block)]
    weights = [weight for layer in (backbone.embed_tokens, *layers) for weight in layer.parameters()]
    return (
        type(backbone.embed_tokens) is nn.Embedding
        and backbone.embed_tokens.max_norm is None
        and all(map(_plain, layers))
        and all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights)
        and len({(weight.device, weight.dtype) for weight in weights}) == 1
        and len(backbone.layers) == backbone.config.num_hidden_layers
    )


class Weights:
    """A readable network's current weights, in autocast's dtype where that is on, laid out for decoding."""

    def __init__(self, model: LanguageModel, *, pack: bool):
        self.backbone: Any = getattr(model.network, model.network.base_model_prefix)
        config = self.backbone.config
        attention = self.backbone.layers[0].self_attn
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.width, self.scale = attention.head_dim, attention.scaling
        self.embedding = self.backbone.embed_tokens.weight.detach()
        self.dtype = product_dtype(self.embedding) if self.embedding.dtype != torch.float64 else torch.float64
        self.layers = [_Layer.of(block, self.dtype, pack=pack) for block in self.backbone.layers]
        self.norm = _Norm(self.backbone.norm)


class LlamaDecoder(Decoder):
    """The decoder of a readable network with these weights.

    Args:
        room: tokens that a row will have at most, prompt included.
    """

    def __init__(self, weights: Weights, logits_head: LogitsHead, *, room: int):
        super().__init__(logits_head, weights.embedding.device)
        self.weights = weights
        self.stores = [(Store(room), Store(room)) for _ in weights.layers]
        places = torch.arange(room, device=self.device)[None]
        self.turns: tuple[Tensor, Tensor] = weights.backbone.rotary_emb(weights.embedding[:0], places)  # [1 room d]

    def start(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "b V"]:
        """See `Decoder`. A beginning that all prompts share, such as a system message, is read once."""
        self.begin(prompts[0][: shared_beginning(prompts)])
        return self.follow(prompts)

    def begin(self, ids: Sequence[int]) -> None:
        """Reads the ids with which all prompts begin, if there are any, in a single row."""
        self.used = self.shared = len(ids)
        if ids:
            self._hidden(torch.tensor([list(ids)], device=self.device))

    def follow(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "b V"]:
        """Reads the rest of the prompts, one row each, and returns the logits of the next tokens."""
        if self.shared:
            self.keep(torch.zeros(len(prompts), dtype=torch.long, device=self.device))
        return super().start([prompt[self.shared :] for prompt in prompts])

    def join(self, other: "LlamaDecoder", *, room: int) -> None:
        """Appends the rows of another decoder with the same beginning.

        room: tokens that each row may still have.
        """
        missing = [one._missing() for one in (self, other)]
        lengths = torch.cat([self.used - missing[0], other.used - missing[1]])
        width = int(lengths.max())
        places = self.shared, [int(padding.min()) for padding in missing], width, room
        for (keys, values), (more_keys, more_values) in zip(self.stores, other.stores, strict=True):
            keys.join(more_keys, *places)
            values.join(more_values, *places)
        self.used = width
        self.padding = width - lengths if bool((lengths < width).any()) else None

    def _missing(self) -> Int[Tensor, " b"]:
        """The padding of each row."""
        states = self.stores[0][0].states
        assert states is not None
        return self.padding if self.padding is not None else torch.zeros(len(states), dtype=torch.long).to(self.device)

    def keep(self, rows: Int[Tensor, " c"]) -> None:
        """See `Decoder`."""
        super().keep(rows)
        for keys, values in self.stores:
            keys.keep(rows)
            values.keep(rows)

    def copy(self) -> "LlamaDecoder":
        """See `Decoder`."""
        other = copy.copy(self)
        other.stores = [(keys.copy(), values.copy()) for keys, values in self.stores]
        return other

    def _hidden(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b D"]:
        x = embedding(tokens, self.weights.embedding)
        turns, mask = self._turns(tokens.shape[1]), self._mask(tokens.shape[1])
        for layer, stores in zip(self.weights.layers, self.stores, strict=True):
            last = layer is self.weights.layers[-1]  # of which only the last position is required
            attended = self._attend(layer, stores, layer.norm(x), turns, mask, last=last)
            x = (x[:, -1:] if last else x) + layer.out(attended)
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, -1)
            x = x + layer.down(silu(gate) * up)
        return self.weights.norm(x[:, -1])

    def _attend(
        self,
        layer: "_Layer",
        stores: tuple[Store, Store],
        x: Float[Tensor, "b t D"],
        turns: tuple[Tensor, Tensor],
        mask: Tensor | None,
        *,
        last: bool,
    ) -> Float[Tensor, "b s E"]:
        """The heads' input to the output projection: of all positions, or of the last one."""
        known, (batch, length) = self.weights, x.shape[:2]
        parts = layer.qkv(x).view(batch, length, -1, known.width).transpose(1, 2)
        queries, keys, values = parts.split([known.heads, known.groups, known.groups], 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = layer.query_norm(queries), layer.key_norm(keys)
        queries, keys = (_turned(states, *turns).to(known.dtype) for states in (queries, keys))
        keys, values = stores[0].append(keys), stores[1].append(values)
        if last:
            queries, mask = queries[:, :, -1:], None if mask is None else mask[:, :, -1:]
        positions = queries.shape[2]
        # queries that share keys are read as positions of one head: nothing is repeated
        grouped = queries.reshape(batch, known.groups, -1, known.width) if positions == 1 else queries
        causal, several = positions > 1 and mask is None, positions > 1
        attended = scaled_dot_product_attention(
            grouped, keys, values, mask, is_causal=causal, scale=known.scale, enable_gqa=several
        )
        return attended.reshape(batch, known.heads, positions, known.width).transpose(1, 2).flatten(2)

    def _turns(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the last `length` positions, `[b or 1, 1, t, d]`."""
        places = self._places(length)
        if places is None:
            cos, sin = (turn[:, self.used - length : self.used] for turn in self.turns)
        else:
            cos, sin = (turn[0, places.clamp(min=0)] for turn in self.turns)
        return cos[:, None], sin[:, None]

    def _mask(self, length: int) -> Tensor | None:
        """The positions that the last `length` positions attend to, up to themselves; None for all before them."""
        places = self._places(self.used)
        if places is None and length in (1, self.used):
            return None
        column = torch.arange(self.used, device=self.device)
        row = column[-length:, None]
        if places is None:
            return (column <= row)[None, None]
        return ((column <= row) & (places >= 0)[:, None] | (column == row))[:, None]


@dataclass(frozen=True)
class _Layer:
    """The products of one block: queries, keys and values in one; gate and up in another."""

    norm: "_Norm"
    qkv: Product
    query_norm: "_Norm | None"
    key_norm: "_Norm | None"
    out: Product
    mlp_norm: "_Norm"
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, block: Any, dtype: torch.dtype, *, pack: bool) -> "_Layer":
        def product(*layers: Any) -> Product:
            weight, bias = _stacked(layers)
            return Product(weight.to(dtype), None if bias is None else bias.to(dtype), pack=pack)

        attention, mlp = block.self_attn, block.mlp
        query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        return cls(
            norm=_Norm(block.input_layernorm),
            qkv=product(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=query_norm and _Norm(query_norm),
            key_norm=key_norm and _Norm(key_norm),
            out=product(attention.o_proj),
            mlp_norm=_Norm(block.post_attention_layernorm),
            gate_up=product(mlp.gate_proj, mlp.up_proj),
            down=product(mlp.down_proj),
        )


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens with which all prompts begin, where it pays to read them once; the last token of
    each prompt is left out, as `start` returns its logits.
    """
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # by their ids: all others lie between them
    shortest = min(map(len, prompts)) - 1
    shared = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return shared if shared * (len(prompts) - 1) >= _WORTH_SHARING else 0


def _stacked(layers: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases below one another, in their own precision: LoRA multiplies matrices here, no activations."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    with torch.autocast(layers[0].weight.device.type, enabled=False):
        weight = torch.cat([effective_weight(layer) for layer in layers])
    return weight, torch.cat(biases) if biases else None


class _Norm:
    """x / rms(x) * weight, in float32 but for the gain, as the library does it."""

    def __init__(self, layer: Any):
        self.weight, self.eps = layer.weight.detach(), layer.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self.weight * wide.to(x.dtype)


def _turned(states: Float[Tensor, "b h t d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "b h t d"]:
    """Rotary positions (arXiv 2104.09864), the halves of a head as pairs."""
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


def _usual(config: Any) -> bool:
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    sliding = getattr(config, "sliding_window", None) if getattr(config, "layer_types", None) is None else None
    return (
        set(layer_types) == {"full_attention"}
        and sliding is None
        and config.hidden_act == "silu"
        and (config.rope_parameters or {}).get("rope_type") in _LASTING
    )


def _bare(module: nn.Module) -> bool:
    """True if the module's forward has neither hooks nor a replacement."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _known(module: nn.Module, backbone: nn.Module) -> bool:
    """True for one of the architecture's own modules, or of their submodules."""
    return type(module).__module__ == type(backbone).__module__ or type(module) in _PARTS


def _linear_layers(block: Any) -> list[Any]:
    attention, mlp = block.self_attn, block.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]


def _plain(layer: Any) -> bool:
    """True for a matrix, or one with plain LoRA."""
    if isinstance(layer, LoraLinear):
        variants = dict(layer.lora_variant) or any(layer.lora_bias.values())
        return type(layer.get_base_layer()) is nn.Linear and not variants
    return type(layer) is nn.Linear
