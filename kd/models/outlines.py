"""Networks laid out without weights and without a hub, from their architectures alone."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, PreTrainedModel

from kd.models.architectures import architecture_of, architectures
from kd.models.attention import switched
from kd.models.language_model import LanguageModel
from kd.models.networks import shaped
from kd.models.packing import backbone
from kd.models.tokenizers import byte_tokenizer, load_tokenizer
from kd.sources.addresses import keys_of, model_folder
from kd.types import ModelOutput, Sequences

NAME = "outlined"  # among the library's implementations of attention
NETWORKS = "kd.models.networks."
SHAPING = ("layers", "rule", "ffn", "dtype", "lora")  # keys of a node that change a network's shapes


class Outline(LanguageModel):
    """A language model of shapes alone, on the device "meta", without a tokenizer.

    It is measured (parameters, FLOPs, memory) and never run.
    """

    def __init__(self, network: PreTrainedModel):
        nn.Module.__init__(self)  # a model that is read has a tokenizer, too
        self.network = network

    @cached_property
    def vocabulary(self) -> int:
        """The rows of the head: all of them, for the tokenizer's ids are not known."""
        return self.network.config.get_text_config().vocab_size

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """Pass tokens through the backbone, so that what is kept for a backward pass can be counted."""
        with switched(self.network, NAME):
            out = backbone(self.network)(input_ids=sequences.tokens.to("meta"), use_cache=False)
        return ModelOutput(hidden=(out.last_hidden_state,))

    @property
    def vision(self) -> None:
        """Images are not counted."""
        return None


class _Fused(torch.autograd.Function):
    """The memory of fused attention for its backward pass: its inputs and its output, no square of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output's shape, [B, heads, T, width of a value]."""
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attention with the signature of `transformers`."""
    return _Fused.apply(query, key, value).transpose(1, 2), None  # type: ignore[no-untyped-call]


AttentionInterface.register(NAME, _attention)  # without a mask function: no mask is made


def outline(node: Mapping[str, Any]) -> Outline:
    """The network of a config node, `kd.models.networks.pretrained`, `pruned` or `scratch`, without weights.

    Raises ValueError: a hub checkpoint of an unknown architecture and without a config that can be fetched,
    or no decoder.
    """
    kind = str(node["_target_"]).removeprefix(NETWORKS)
    config = _scratch_config(node) if kind == "scratch" else _config(keys_of(node["source"]))
    if config.is_encoder_decoder:
        raise ValueError(f"model_type={config.model_type} is an encoder-decoder; take a decoder-only checkpoint")
    given = {name: node[name] for name in SHAPING if node.get(name) is not None}
    with torch.device("meta"):
        return Outline(shaped(config, **given))


def networks_in(node: Any) -> Iterator[Mapping[str, Any]]:
    """The nodes of networks below a config node, as those of a teacher or of an ensemble's members."""
    if isinstance(node, list):
        for child in node:
            yield from networks_in(child)
    if isinstance(node, Mapping):
        if str(node.get("_target_")).startswith(NETWORKS):
            yield node
        else:
            for child in node.values():
                yield from networks_in(child)


def _scratch_config(node: Mapping[str, Any]) -> Any:
    """The config of random weights, with the vocabulary of its tokenizer."""
    tokenizer = node.get("tokenizer") or "bytes"
    if tokenizer == "bytes":
        size = len(byte_tokenizer())
    elif str(keys_of(tokenizer)["address"]).startswith("hub:"):
        size = _config(keys_of(tokenizer)).get_text_config().vocab_size
    else:
        size = len(load_tokenizer(model_folder(**keys_of(tokenizer))))
    return AutoConfig.for_model(**{"vocab_size": size, **node["architecture"]})


def _config(source: Mapping[str, Any]) -> Any:
    """The config of a checkpoint: of a hub's, that of its known architecture, else its config.json alone."""
    address = str(source["address"])
    if not address.startswith("hub:"):
        return AutoConfig.from_pretrained(model_folder(**source))
    name, _, revision = address.removeprefix("hub:").partition("@")
    if (known := architecture_of(name)) is not None:
        return AutoConfig.for_model(**known.fields)
    try:
        return AutoConfig.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{address} is none of the {len(architectures())} known architectures (kd/models/architectures.yaml), and "
            f"its config.json cannot be fetched ({reason}); add an entry, or take a copy on disk (local:PATH)"
        ) from None
