"""Sequences of different lengths as one row without padding.

Norms, projections and feed-forward blocks work on each token alone, so for them the real tokens of all sequences stand
one after another. Attention alone depends on where a sequence begins and ends: it is computed over groups of similar
lengths, padded, of which the real positions are kept; or, in half precision on a GPU, by torch's attention over
sequences of different lengths, which needs no padding at all.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from kd.data.sequences import micro_batches
from kd.eval_mode import eval_mode
from kd.kernels.products import faster_linear
from kd.models.attention import switched
from kd.types import Sequences, sent

NAME = "packed"  # among the library's implementations of attention; without a mask function, the library makes no mask
PADDING = 0.3  # largest share in a group: attention loses less time by it than by another call
HALF, HALF_ON = (torch.bfloat16, torch.float16), "cuda"  # of torch's attention over different lengths
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of hidden states, relative in norm; else 0.03
KNOWN = {"position_ids", "use_cache", "output_hidden_states", "sliding_window", "is_causal"}  # no others are supported


@dataclass(frozen=True)
class Packing:
    """The layout of a batch in a packed row: the longest sequence first, a group's sequences adjacent."""

    shape: tuple[int, int]  # of the batch: rows, and tokens with padding
    places: Int[Tensor, " N"]  # of the packed tokens in the batch, flat
    positions: Int[Tensor, "1 N"]  # of each token in its sequence
    groups: tuple["Group", ...]
    ends: Int[Tensor, " c1"] | None = None  # of the sequences in the packed row, from 0 on; None: some branch

    @classmethod
    def of(cls, sequences: Sequences, branches: Int[Tensor, "B T"] | None = None) -> "Packing":
        """The packing of these sequences.

        branches: of each token, 0 in the beginning of a sequence and k > 0 in the k-th of its continuations, which do
            not attend to one another; each is at the positions after the beginning. Padding, on the right, is -1.
        """
        known, device = sequences.known_lengths, sequences.tokens.device
        order = sorted(range(len(known)), key=lambda row: (-known[row], row))
        lengths = torch.tensor([known[row] for row in order], dtype=torch.long)
        divided = micro_batches(lengths.tolist(), max_tokens=2**62, max_padding=PADDING)
        rows = torch.tensor(order).repeat_interleave(lengths)
        ends = lengths.cumsum(0)
        positions = torch.arange(len(rows)) - (ends - lengths).repeat_interleave(lengths)
        width = sequences.tokens.shape[1]
        shift = 0 if sequences.padding_side == "right" else (width - lengths).repeat_interleave(lengths)
        places = rows * width + positions + shift
        groups = [Group.of(lengths[group[0] : group[-1] + 1], device) for group in divided]
        if branches is not None:
            branches = branches.cpu()
            positions = _positions(branches).flatten()[places]
            groups = [
                replace(one, mask=sent(_branch_mask(branches[[order[i] for i in group], : one.longest]), device))
                for one, group in zip(groups, divided, strict=True)
            ]
        begun = nn.functional.pad(ends, (1, 0)).to(torch.int32) if branches is None else None
        return cls(
            (len(known), width),
            sent(places, device),
            sent(positions[None], device),
            tuple(groups),
            None if begun is None else sent(begun, device),
        )

    def pack(self, x: Tensor) -> Tensor:
        """`[B T ...]` -> `[1 N ...]`"""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def select(self, x: Float[Tensor, "1 N D"], places: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """The tokens at these places of the flat batch, which must be those of real tokens."""
        packed = self.places.new_empty(self.shape[0] * self.shape[1])
        packed[self.places] = torch.arange(len(self.places), device=places.device)
        return x[0].index_select(0, packed[places])

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """The inverse of `pack`; 0 where padding is."""
        rows, width = self.shape
        return x.new_zeros(rows * width, x.shape[-1]).index_copy(0, self.places, x[0]).view(rows, width, -1)


@dataclass(frozen=True)
class Group:
    """Adjacent sequences of a packed row that attention reads together."""

    tokens: int
    count: int  # sequences
    longest: int
    slots: Int[Tensor, " n"] | None  # places of the tokens in the padded group, flat; None: it has no padding
    mask: Bool[Tensor, "c 1 t t"] | None = None  # True where a token attends to another; None: to all before it

    @classmethod
    def of(cls, lengths: Int[Tensor, " c"], device: torch.device) -> "Group":
        """The group of sequences with these lengths, longest first."""
        count, longest, tokens = len(lengths), int(lengths[0]), int(lengths.sum())
        real = torch.arange(longest) < lengths[:, None]
        slots = None if tokens == count * longest else sent(real.flatten().nonzero()[:, 0], device)
        return cls(tokens, count, longest, slots)

    def padded(self, x: Float[Tensor, "n h d"]) -> Float[Tensor, "c h t d"]:
        """Each sequence in a row of its own, 0 beyond its end."""
        if self.slots is not None:
            x = x.new_zeros(self.count * self.longest, *x.shape[1:]).index_copy(0, self.slots, x)
        return x.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def real(self, x: Float[Tensor, "c h t d"]) -> Float[Tensor, "n h d"]:
        """The inverse of `padded`."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)


def _positions(branches: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Of each token in the text that its branch ends."""
    place = torch.arange(branches.shape[1]).expand_as(branches)
    first = torch.nn.functional.pad(branches[:, 1:] != branches[:, :-1], (1, 0))
    begin = (place * first).cummax(1).values
    return place - begin + (branches == 0).sum(1, keepdim=True) * (branches > 0)


def _branch_mask(branches: Int[Tensor, "c t"]) -> Bool[Tensor, "c 1 t t"]:
    """Each token attends to itself, to those before it in its branch, and to the beginning."""
    own, other = branches[:, :, None], branches[:, None, :]
    return ((own == other) | (other == 0)).tril()[:, None]


def packable(network: PreTrainedModel) -> bool:
    """True if the network gives the same hidden states for packed sequences, tried on two short ones.

    It does not where a layer other than attention mixes tokens, or where attention cannot be exchanged, is limited
    to a window, or has features that our implementation lacks.
    """
    config: Any = network.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    usual = network.config._attn_implementation == "sdpa"
    if not usual or not network._can_set_attn_implementation() or any(windows):
        return False
    lengths = torch.tensor([4, 3], device=network.device)
    tokens = torch.arange(8, device=network.device).view(2, 4) % config.vocab_size
    sequences = Sequences(tokens, tokens, tokens >= 0, lengths)
    packing, supported = Packing.of(sequences), list[bool]()
    with eval_mode([network]), torch.autocast(network.device.type, enabled=False):
        padded = packing.pack(backbone(network)(input_ids=tokens, use_cache=False).last_hidden_state)
        try:
            packed = packed_states(network, packing, sequences, supported=supported).last_hidden_state
        except (TypeError, AttributeError, RuntimeError, ValueError):  # it needs a mask, or takes no such arguments
            return False
        gap = (packed - padded).norm() / padded.norm()
        return supported == [True] * config.num_hidden_layers and bool(gap <= TOLERANCE.get(network.dtype, 0.03))


def packed_states(network: PreTrainedModel, packing: Packing, sequences: Sequences, **wanted: Any) -> Any:
    """The backbone's output for the packed tokens; its hidden states are `[1 N D]`."""
    ids = {"input_ids": packing.pack(sequences.tokens), "position_ids": packing.positions}
    with switched(network, NAME), faster_linear(sequences.tokens.device):
        return backbone(network)(**ids, use_cache=False, packing=packing, **wanted)


def recompute(network: PreTrainedModel) -> None:
    """Has the network recompute its layers in the backward pass, of packed sequences too: by the attention of the
    forward pass, although `packed_states` has put the network's own back by then."""
    kwargs = {"use_reentrant": False, "context_fn": partial(_recompute_contexts, network)}
    network.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)


def recomputes_packed(network: PreTrainedModel) -> bool:
    """True if it was `recompute` alone that has the network recompute its layers."""
    functions = [module._gradient_checkpointing_func for module in network.modules() if _recomputes(module)]
    contexts = [getattr(function, "keywords", {}).get("context_fn") for function in functions]
    return all(isinstance(one, partial) and one.func is _recompute_contexts for one in contexts)


def _recomputes(module: nn.Module) -> bool:
    return "_gradient_checkpointing_func" in vars(module)


def _recompute_contexts(network: PreTrainedModel) -> tuple[AbstractContextManager, AbstractContextManager]:
    """The contexts of a layer's forward pass, and of its recomputation."""
    packed = network.config._attn_implementation == NAME
    return nullcontext(), _again(network) if packed else nullcontext()


@contextmanager
def _again(network: PreTrainedModel) -> Iterator[None]:
    with switched(network, NAME), faster_linear(network.device):
        yield


def backbone(network: PreTrainedModel) -> nn.Module:
    """The network without its head."""
    return getattr(network, network.base_model_prefix)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "1 h N d"],
    key: Float[Tensor, "1 g N d"],
    value: Float[Tensor, "1 g N e"],
    mask: Any,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    supported: list[bool] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 N h e"], None]:
    """Attention with the signature of `transformers`; appends to `supported` whether the arguments are supported."""
    if supported is not None:
        strange = mask is not None or any(others[name] is not None for name in others.keys() - KNOWN)
        supported.append(not strange and getattr(module, "is_causal", True))
    if packing.ends is not None and not dropout and reads_lengths(value):
        return _by_lengths(query, key, value, packing, scaling), None
    return _by_groups(query, key, value, packing, scaling, dropout), None


def _by_groups(
    query: Tensor,
    key: Tensor,
    value: Float[Tensor, "1 g N e"],
    packing: Packing,
    scale: float | None,
    dropout: float = 0.0,
) -> Float[Tensor, "1 N h e"]:
    """Attention over each group of sequences, padded."""
    sizes = [group.tokens for group in packing.groups]
    pieces = zip(*(states[0].transpose(0, 1).split(sizes) for states in (query, key, value)), strict=True)
    outputs = [
        group.real(_causal(group.padded(q), group.padded(k), group.padded(v), dropout, scale, group.mask))
        for group, (q, k, v) in zip(packing.groups, pieces, strict=True)
    ]
    return torch.cat(outputs)[None]


def reads_lengths(value: Tensor) -> bool:
    """True if torch's attention over sequences of different lengths computes such states: half precision on a GPU."""
    there = value.device.type == HALF_ON and value.dtype in HALF
    return there and _is_exact(value.device, value.dtype, value.shape[-1])


def _by_lengths(
    query: Tensor, key: Tensor, value: Float[Tensor, "1 g N e"], packing: Packing, scale: float | None
) -> Float[Tensor, "1 N h e"]:
    """Attention over the whole row by torch's kernel for sequences of different lengths."""
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    ends: Any = packing.ends
    longest, shared = packing.groups[0].longest, q.shape[1] != k.shape[1]
    sizes = (ends, ends, longest, longest)
    output: Any = varlen_attn(q, k, v, *sizes, scale=scale, window_size=(-1, 0), enable_gqa=shared)
    return output[None]


@lru_cache
@torch.inference_mode(mode=False)
def _is_exact(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """True if it gives output and gradient of the padded attention, tried on two sequences; False where it fails."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, 7, width, generator=draw).to(device, dtype) for heads in (4, 2, 2)]
    tokens = torch.zeros(2, 4, dtype=torch.long, device=device)
    packing = Packing.of(Sequences(tokens, tokens, tokens >= 0, torch.tensor([4, 3])))
    found, ways = list[Tensor](), list[Any]([_by_lengths, _by_groups])
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            for attend in ways:
                leaves = [x.clone().requires_grad_() for x in states]
                output = attend(*leaves, packing, None)
                found.append(torch.cat([x.flatten() for x in (output, *torch.autograd.grad(output.sum(), leaves))]))
        except (RuntimeError, ValueError, NotImplementedError):  # an older GPU, or heads that are too wide
            return False
    return bool((found[0] - found[1]).norm() <= TOLERANCE.get(dtype, 0.03) * found[1].norm())


def _causal(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, mask: Tensor | None
) -> Tensor:
    """Fused attention. On CPUs its backward pass in bfloat16 is 2-4 times as slow as in float32, with rounding too."""
    with torch.autocast(query.device.type, enabled=False):
        wide = query.device.type == "cpu" and value.requires_grad
        dtype = torch.promote_types(value.dtype, torch.float32) if wide else value.dtype
        q, k, v = (states.to(dtype) for states in (query, key, value))
        shared = q.shape[1] != k.shape[1]
        output = scaled_dot_product_attention(
            q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=shared
        )
        return output.to(value.dtype)


AttentionInterface.register(NAME, _attention)
