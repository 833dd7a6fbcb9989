"""Floating-point operations of a language model, by counting: real tokens, no padding, nothing done twice.

2 per weight and token forward, as much again for each of the two gradients; the head per row that meets it; causal
attention. Of a mixture's experts only those that a token is routed to count, beside its router and its shared experts.
Norms, rotations, softmaxes and the scans of state-space layers are left out (below 2 %). So is what a vision-language
model computes of an image before its language model reads it: the tower and the connector count nothing.
"""

import re
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from kd.models.language_model import LanguageModel
from kd.types import Sequences

VERSION = 2  # the experts that a token is routed to, not all of them
WITHOUT_ATTENTION = ("linear_attention", "conv", "mamba", "recurrent", "moe")  # transformers' names of kinds of layers
ROUTED = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")  # its names of experts for a token


def training_flops(model: LanguageModel, sequences: Sequences) -> int:
    """FLOP of one forward and backward pass over the real tokens and loss rows of `sequences`.

    6 per weight and token, 4 if the weight is frozen (no gradient of its own).
    """
    head = model.network.get_output_embeddings().weight
    matrices = sum(_passes(p) * active for p, active in _backbone(model))
    lengths, rows = sequences.lengths, int(sequences.mask.sum())
    return (
        matrices * int(lengths.sum())
        + 3 * _attention(model, int((lengths**2).sum()))
        + _passes(head) * head.numel() * rows
    )


def reading_flops(model: LanguageModel, sequences: Sequences) -> int:
    """FLOP of one forward pass over the real tokens and loss rows of `sequences`."""
    head = model.network.get_output_embeddings().weight
    matrices = 2 * sum(active for _, active in _backbone(model))
    lengths, rows = sequences.lengths, int(sequences.mask.sum())
    return matrices * int(lengths.sum()) + _attention(model, int((lengths**2).sum())) + 2 * head.numel() * rows


def decoding_flops(model: LanguageModel, prompts: Sequence[int], responses: Sequence[int], *, samples: int = 1) -> int:
    """FLOP of generating `samples` adjacent responses to each prompt; `prompts` and `responses` are lengths.

    Each token is read once, but for the last generated, and a prompt once for all its samples. Decoding may do a little
    less: in the last layer, only the positions that are needed.
    """
    head = model.network.get_output_embeddings().weight
    before = [prompt for prompt in prompts for _ in range(samples)]
    whole = [prompt + response - 1 for prompt, response in zip(before, responses, strict=True)]
    tokens = sum(whole) - sum(before) + sum(prompts)
    squares = sum(n**2 for n in whole) - sum(n**2 for n in before) + sum(n**2 for n in prompts)
    rows = sum(responses) - len(before) + len(prompts)
    matrices = 2 * sum(active for _, active in _backbone(model))
    return matrices * tokens + _attention(model, squares) + 2 * head.numel() * rows


def scoring_flops(model: LanguageModel, head: nn.Linear, lengths: Int[Tensor, " B"], *, learning: bool = False) -> int:
    """FLOP of a forward pass over sequences of `lengths` and of `head` on each; with `learning`, of gradients, too.

    No row passes through the model's own head, where it still has one.
    """
    weights = sum((_passes(p) if learning else 2) * active for p, active in _backbone(model))
    attention = _attention(model, int((lengths**2).sum()))
    scores = (_passes(head.weight) if learning else 2) * head.weight.numel() * len(lengths)
    return weights * int(lengths.sum()) + (3 if learning else 1) * attention + scores


def _backbone(model: LanguageModel) -> list[tuple[nn.Parameter, int]]:
    """Each parameter with the number of its values that a token meets.

    Left out are the embedding, which is looked up, and the head, which some rows meet only, or which is gone.
    """
    network: Any = model.network
    ends = (network.get_input_embeddings(), network.get_output_embeddings())
    apart = {id(module.weight) for module in ends if not isinstance(module, nn.Identity)}  # on "meta" all lie at 0
    read = network if model.vision is None else network.get_decoder()
    experts = _experts(read)
    found = []
    for name, parameter in read.named_parameters():
        if id(parameter) not in apart:
            inside = (share for prefix, share in experts.items() if name.startswith(prefix))
            routed, of = next(inside, (1, 1))
            found.append((parameter, parameter.numel() * routed // of))
    return found


def _experts(network: Any) -> dict[str, tuple[int, int]]:
    """A mixture's routed experts, by prefix of their parameters' names: (experts that a token is routed to, experts).

    Empty where the config does not give that number; all experts count then. Adapters of experts share their prefix.
    """
    config = network.config.get_text_config()
    config = getattr(config, "ffn_config", config)  # DBRX
    routed = next((count for key in ROUTED if isinstance(count := getattr(config, key, None), int)), None)
    found = {}
    for name, module in network.named_modules():
        count, shared = getattr(module, "num_experts", None), name.rpartition(".")[2].startswith("shared")
        if routed and isinstance(count, int) and type(module).__name__.endswith("Experts") and not shared:
            found[re.sub(r"(\.base_layer)+$", "", name) + "."] = (min(routed, count), count)
    return found


def _attention(model: LanguageModel, squares: int) -> int:
    """FLOP of attention, forward, over sequences whose squared lengths add up to `squares`; half of it is masked.

    0 in a network without heads of attention (Mamba); layers that are recurrent or convolutions are left out.
    """
    config: Any = model.network.config.get_text_config()
    if not (heads := getattr(config, "num_attention_heads", None)):
        return 0
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = config.num_hidden_layers if kinds is None else sum(kind not in WITHOUT_ATTENTION for kind in kinds)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "qk_head_dim", None) or width  # multi-head latent attention: as wide as what is compared
    values = getattr(config, "v_head_dim", None) or width
    return 2 * layers * heads * (keys + values) * squares // 2


def _passes(weight: Tensor) -> int:
    return 6 if weight.requires_grad else 4
