"""A causal language model of `transformers` as one call from sequences and wanted fields to a `ModelOutput`."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd.data.images import Vision, joined, vision_of
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import HeadLogits, label_logprobs
from kd.models.attention import watched
from kd.models.digests import network_digest
from kd.models.packing import Packing, backbone, packable, packed_states, recomputes_packed
from kd.models.sharding import gathered
from kd.types import QKV, Batch, Head, ModelOutput, Pixels, Sequences, Shape

log = logging.getLogger(__name__)

WHOLE_ROWS = frozenset({"attentions", "qkv"})  # fields that need rows of one length
OF_ROWS = frozenset({"logits", "logprobs", "mean_logprobs"})  # fields made of the loss rows and the head


class LanguageModel(nn.Module):
    """A language model: `network` is the checkpoint's own module tree, `tokenizer` the one it was trained with.

    Only the loss rows (the True positions of `sequences.mask`) pass through the head, and only on demand: `logits`
    is lazy.
    """

    provides = frozenset({"logits", "logprobs", "mean_logprobs", "hidden", "attentions", "qkv", "embeddings", "head"})

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.register_load_state_dict_post_hook(_recheck)

    @cached_property
    def vocabulary(self) -> int:
        """The number of the tokenizer's ids. Heads are often padded beyond it; padded rows never enter a softmax."""
        known = 1 + max(self.tokenizer.get_vocab().values())  # len() would miss the last ones if ids have holes
        return min(known, self.network.config.get_text_config().vocab_size)

    @property
    def vision(self) -> Vision | None:
        """The processor of images; None for a model of text alone."""
        return vision_of(self.tokenizer)

    def images(self, tokens: Int[Tensor, "B T"], pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """The network's inputs for the images of sequences, or of prompts.

        Raises ValueError for images that the model does not read, or tokens of images without them.
        """
        if self.vision is None:
            if any(pixels):
                raise ValueError(f"{type(self.network).__name__} reads no images; take a vision-language model")
            return {}
        if any(pixels):
            return joined(pixels, self.network.dtype)
        if (tokens == self.vision.token).any():
            raise ValueError(
                f"{type(self.network).__name__} was given the tokens of images without the images; "
                "take rollout=offline or on_policy and generator=torch, which keep them"
            )
        return {}

    def identity(self) -> str:
        """The digest of weights and configuration as they are now (`kd.models.digests`)."""
        return network_digest(self.network)

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """Compute hidden states once, then the wanted fields."""
        images = self.images(sequences.tokens, sequences.pixels)
        packing = Packing.of(sequences) if self._reads_packed(wanted) else None
        out, qkv = self._read(sequences, packing, wanted, images)
        output = ModelOutput()
        if "hidden" in wanted:
            output.hidden = tuple(x if packing is None else packing.unpack(x) for x in out.hidden_states)
        if "attentions" in wanted:
            output.attentions = self._of_each_layer("attentions", tuple(out.attentions or ()))
        if "qkv" in wanted:  # a vision tower's layers come first
            own = qkv if self.vision is None else qkv[-self.shape.layers :]
            output.qkv = self._of_each_layer("qkv", tuple(own))
        if "embeddings" in wanted:
            output.embeddings = effective_weight(self.network.get_input_embeddings())[: self.vocabulary]
        if "head" in wanted:
            output.head = self.head()
        if wanted & OF_ROWS:
            last, places = out.last_hidden_state, sequences.places
            chosen = last.flatten(0, 1).index_select(0, places) if packing is None else packing.select(last, places)
            fill(output, HeadLogits(chosen, self.head()), sequences, wanted)
        return output

    def read_branches(self, sequences: Sequences, branches: Int[Tensor, "B T"]) -> HeadLogits:
        """The logits at the True positions of the mask where several continuations of one text are read in one row.

        It requires `packs`. branches: see `kd.models.packing.Packing.of`.
        """
        packing = Packing.of(sequences, branches)
        last = packed_states(self.network, packing, sequences).last_hidden_state
        return HeadLogits(packing.select(last, sequences.places), self.head())

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """The wanted fields at a batch's teacher sequences (`kd.teachers.interface.Teacher.output`)."""
        return self(batch.teacher, wanted)

    @cached_property
    def packs(self) -> bool:
        """True if sequences can be read without padding; tried on two, and again by `recheck_packing`.

        A vision-language model reads rows, for its images belong to them.
        """
        return self.vision is None and packable(self.network)

    def recheck_packing(self) -> None:
        """Tests packing on two sequences again, as the result may depend on the weights, which have changed.

        If the outputs now differ, the network reads padded sequences from then on, and a warning is logged.
        """
        if not self.__dict__.get("packs"):
            return
        with gathered(self):
            self.__dict__["packs"] = packable(self.network)
        if not self.packs:
            log.warning(
                "%s no longer reads packed sequences as it reads each alone, now that its weights have changed; "
                "sequences are padded from here on",
                type(self.network).__name__,
            )

    @property
    def shape(self) -> Shape:
        """The sizes that terms depend on, from the network's configuration."""
        config = self.network.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None)
        heads = heads if isinstance(heads, int) else None  # some list them by layer
        return Shape(config.hidden_size, config.num_hidden_layers, heads, _head_width(config, heads))

    def head(self) -> Head:
        """The current output projection (LoRA on it included), cut to the tokenizer's ids."""
        return _head(self.network, self.vocabulary)

    def _reads_packed(self, wanted: frozenset[str]) -> bool:
        recomputed = torch.is_grad_enabled() and self.network.is_activation_checkpointing
        return not wanted & WHOLE_ROWS and self.packs and (not recomputed or recomputes_packed(self.network))

    def _read(
        self, sequences: Sequences, packing: Packing | None, wanted: frozenset[str], images: dict[str, Tensor]
    ) -> tuple[Any, list[QKV]]:
        """The backbone's output, and its layers' queries, keys and values if they are wanted."""
        hidden, attentions, qkv = (name in wanted for name in ("hidden", "attentions", "qkv"))
        if packing is not None:
            return packed_states(self.network, packing, sequences, output_hidden_states=hidden), []
        named = {"output_hidden_states": hidden, "output_attentions": attentions}
        with watched(self.network, attentions=attentions, qkv=qkv) as seen:
            return backbone(self.network)(**_inputs(sequences), **images, use_cache=False, **named), seen

    def _of_each_layer(self, name: str, found: tuple) -> tuple:
        if len(found) == self.shape.layers and not any(item is None for item in found):
            return found
        raise ValueError(
            f"{type(self.network).__name__} has {self.shape.layers} layers but shows {name} of {len(found)}; "
            "choose another architecture, or an objective that compares hidden states"
        )


def _recheck(model: LanguageModel, _: Any) -> None:
    """Recheck packing after weights were loaded."""
    model.recheck_packing()


@torch.no_grad()
def check_head(network: PreTrainedModel) -> None:
    """Raises ValueError if the network's logits are not those of its `Head`, tried on one token."""
    token = torch.zeros(1, 1, dtype=torch.long, device=network.device)
    training = network.training
    network.eval()
    hidden = backbone(network)(input_ids=token, use_cache=False).last_hidden_state[0]
    expected = network(input_ids=token, use_cache=False).logits[0].float()
    network.train(training)
    found = HeadLogits(hidden, _head(network, expected.shape[1])).rows(slice(0, 1)).float()
    if not torch.allclose(found, expected, atol=0.02 * expected.abs().max().item(), rtol=0.0):
        raise ValueError(
            f"{type(network).__name__} computes its logits from its last hidden states in a way that is not supported "
            f"(largest difference {(found - expected).abs().max():.3g}); choose another architecture"
        )


def _head(network: PreTrainedModel, vocabulary: int) -> Head:
    config: Any = network.config.get_text_config()
    layer: Any = network.get_output_embeddings()
    bias = getattr(layer, "bias", None)
    return Head(
        weight=effective_weight(layer)[:vocabulary],
        bias=None if bias is None else bias[:vocabulary],
        scale=_scale(config),
        soft_cap=getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None),
    )


def _head_width(config: Any, heads: int | None) -> int | None:
    """Width of an attention head; None where queries and values (DeepSeek), or the layers (Gemma 4), differ in it."""
    if heads is None or any(getattr(config, name, None) for name in ("v_head_dim", "global_head_dim")):
        return None
    return getattr(config, "head_dim", None) or config.hidden_size // heads


def _scale(config: Any) -> float:
    for factor in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if getattr(config, factor, None):
            return float(getattr(config, factor))
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return 1.0 / divisor


def _inputs(sequences: Sequences) -> dict[str, Tensor]:
    if sequences.padding_side == "right":  # causal attention never sees what follows
        return {"input_ids": sequences.tokens}
    width = sequences.tokens.shape[1]
    position = torch.arange(width, device=sequences.tokens.device) - (width - sequences.lengths[:, None])
    return {
        "input_ids": sequences.tokens,
        "attention_mask": (position >= 0).long(),
        "position_ids": position.clamp(min=0),
    }


def effective_weight(layer: Any) -> Tensor:
    """W + s B A of a LoRA layer; its dropout, which acts on the input of A alone, has no place in a matrix."""
    if not hasattr(layer, "get_delta_weight") or layer.merged or layer.disable_adapters:
        return layer.weight
    weight = layer.get_base_layer().weight
    return sum((layer.get_delta_weight(name) for name in layer.active_adapters), start=weight)


def fill(output: ModelOutput, rows: HeadLogits, sequences: Sequences, wanted: frozenset[str]) -> None:
    """Set the wanted fields that are made of the loss rows."""
    output.logits = rows if "logits" in wanted else None
    output.logprobs = _logprobs(rows, sequences) if "logprobs" in wanted else None
    output.mean_logprobs = _mean_logprobs(rows, sequences) if "mean_logprobs" in wanted else None


def _logprobs(rows: HeadLogits, sequences: Sequences) -> Float[Tensor, "B T"]:
    """Log-probabilities of the labels, 0 elsewhere; each chunk's logits are recomputed in the backward pass."""
    labels = sequences.labels.flatten().index_select(0, sequences.places)

    def of(piece: slice) -> Tensor:
        return label_logprobs(rows.rows(piece), labels[piece])

    pieces = [checkpoint(of, piece, use_reentrant=False) for piece in slices(rows.n, CHUNK)]
    values = torch.cat(pieces) if pieces else of(slice(0, 0))  # with a gradient, of zero: other ranks wait for it
    return values.new_zeros(sequences.mask.shape).masked_scatter(sequences.mask, values)


@torch.no_grad()
def _mean_logprobs(rows: HeadLogits, sequences: Sequences) -> Float[Tensor, " B"]:
    """The mean over each response's tokens; 0 for a response without tokens."""
    return _logprobs(rows, sequences).sum(-1) / sequences.mask.sum(-1).clamp(min=1)
