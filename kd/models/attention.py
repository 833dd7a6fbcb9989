"""Queries, keys, values and probabilities of a `transformers` network's attention, captured in its calls.

Queries, keys and values are taken where the network hands them to its attention function: after the projections,
whatever they are called or fused into, after rotary positions and norms of queries and keys, and with LoRA. Queries
carry what an architecture has in place of 1/sqrt(d), so that q k'/sqrt(d) are the network's scores (before a soft cap).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kd.types import QKV

_seen: ContextVar[list[QKV]] = ContextVar("seen")


@contextmanager
def watched(network: PreTrainedModel, *, attentions: bool, qkv: bool) -> Iterator[list[QKV]]:
    """A context in which a network returns probabilities (`attentions`) and fills the list (`qkv`).

    Fused attention makes no probabilities, so `attentions` means the architecture's own plain one. Raises ValueError,
    with `qkv`, for an architecture whose attention cannot be exchanged.
    """
    exchangeable = network._can_set_attn_implementation()
    if qkv and not exchangeable:
        raise ValueError(
            f"{type(network).__name__} gives no access to its queries, keys and values (its attention cannot be "
            "exchanged); choose another architecture, or an objective that compares hidden states"
        )
    usual = network.config._attn_implementation
    plain = "eager" if attentions or usual == "eager" else "sdpa"
    wanted = f"watched_{plain}" if exchangeable and (attentions or qkv) else usual
    seen: list[QKV] = []
    token = _seen.set(seen)
    try:
        with switched(network, wanted):
            yield seen
    finally:
        _seen.reset(token)


@contextmanager
def switched(network: PreTrainedModel, implementation: str) -> Iterator[None]:
    """A context in which the network has another implementation of attention."""
    usual = network.config._attn_implementation
    if implementation == usual:
        yield
        return
    try:
        network.set_attn_implementation(implementation)
        yield
    finally:
        network.set_attn_implementation(usual)


def _watched(plain: str) -> Callable[..., Any]:
    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        _seen.get().append(_entering(query, key, value, settings.get("scaling")))
        return _own(module, plain)(module, query, key, value, mask, **settings)

    return attention


def _entering(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> QKV:
    repeats, usual = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return query if scale in (None, usual) else query * (scale / usual), key, value


def _own(module: nn.Module, plain: str) -> Callable[..., Any]:
    """The implementation `plain`; `eager` is each architecture's own, beside its attention module."""
    if plain == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return ALL_ATTENTION_FUNCTIONS[plain]


def _finite_mask(*arguments: Any, **settings: Any) -> Any:
    """The additive mask, float64 not below float32: eager softmax is in float32, where a padded row would be NaN."""
    mask = ALL_MASK_ATTENTION_FUNCTIONS["eager"](*arguments, **settings)
    wide = mask is not None and mask.dtype == torch.float64
    return mask.clamp(min=torch.finfo(torch.float32).min) if wide else mask


for _plain in ("eager", "sdpa"):
    AttentionInterface.register(f"watched_{_plain}", _watched(_plain))
AttentionMaskInterface.register("watched_eager", _finite_mask)
AttentionMaskInterface.register("watched_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
