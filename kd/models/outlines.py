"""Networks laid out without weights and without a hub, from their architectures alone."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import AttentionInterface, AutoConfig, PreTrainedModel

from kd.models.architectures import architecture_of, architectures
from kd.models.attention import switched
from kd.models.language_model import LanguageModel
from kd.models.networks import shaped
from kd.models.packing import backbone
from kd.models.tokenizers import byte_tokenizer, load_tokenizer
from kd.sources.addresses import keys_of, model_folder
from kd.types import ModelOutput, Sequences

_wide: ContextVar[bool] = ContextVar("wide")
NAME = "outlined"  # among the library's implementations of attention
NETWORKS = "kd.models.networks."
SHAPING = ("layers", "rule", "ffn", "dtype", "lora")  # keys of a node that change a network's shapes


class Outline(LanguageModel):
    """A language model of shapes alone, on the device "meta", without a tokenizer.

    It is measured (parameters, FLOPs, memory) and never run.

    fake: the mode in which its weights are fake tensors of a CPU, which have shapes alone, too (`rehearsable`).
    wide: whether attention is in float32 under autocast.
    """

    def __init__(self, network: PreTrainedModel, fake: FakeTensorMode | None = None, wide: bool = False):
        nn.Module.__init__(self)  # a model that is read has a tokenizer, too
        self.network, self.fake, self.wide = network, fake, wide

    @cached_property
    def vocabulary(self) -> int:
        """The rows of the head: all of them, for the tokenizer's ids are not known."""
        return self.network.config.get_text_config().vocab_size

    def forward(self, sequences: Sequences, wanted: frozenset[str]) -> ModelOutput:
        """Pass tokens through the backbone, so that what is kept for a backward pass can be counted."""
        token = _wide.set(self.wide)
        try:
            with switched(self.network, NAME), self.fake or nullcontext():
                tokens = torch.zeros_like(sequences.tokens, device=self.network.device)
                out = backbone(self.network)(input_ids=tokens, use_cache=False)
        finally:
            _wide.reset(token)
        return ModelOutput(hidden=(out.last_hidden_state,))

    def rehearsable(self, *, on_cpu: bool = False) -> "Outline":
        """A copy that computes under autocast, too, which the device "meta" does not know.

        on_cpu: as it does on a CPU, where attention is in float32 then (`kd.models.packing`).
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        network, made = copy.deepcopy(self.network), dict[int, Any]()
        with mode:
            for module in network.modules():
                for kind in (module._parameters, module._buffers):
                    for name, tensor in kind.items():
                        if tensor is not None:  # a tied one is made once
                            kind[name] = made.setdefault(id(tensor), _fake(tensor))
        return Outline(network, mode, wide=on_cpu)

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


def _fake(tensor: Tensor) -> Tensor:
    """A tensor of that shape on the CPU, without values; inside a `FakeTensorMode`."""
    made = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attention with the signature of `transformers`, in autocast's dtype where that is on."""
    if torch.is_autocast_enabled("cpu") and _wide.get():
        query, key, value = (x.float() for x in (query, key, value))
    elif torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
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
