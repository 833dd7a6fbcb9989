"""The cost of running a model: its size, its memory, and how fast it generates."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kd.data.sequences import prompt_ids
from kd.generators.generation import generate
from kd.models.flops import decoding_flops
from kd.models.language_model import LanguageModel
from kd.types import Record

PROMPTS, TOKENS = 8, 32  # that are timed: seconds on a CPU with a model of 100 M parameters


@dataclass(frozen=True)
class Efficiency:
    """The cost of one model.

    Attributes:
        parameters: number of weights, each once; adapters are not counted, as they are folded in at export.
        weights_bytes: their size in memory in the dtype of the run.
        cache_bytes_per_token: keys and values that attention keeps for each token, in the same dtype; None: other
            layers.
        flops_per_token: floating-point operations of one generated token, attention to earlier ones left out.
        tokens_per_second: of greedy generation, `PROMPTS` prompts together, `TOKENS` tokens each at most, on the device
            and in the dtype of the run; adapters stand beside the weights, so the exported student is faster.
        generated_tokens: tokens that were timed.
    """

    parameters: int
    weights_bytes: int
    cache_bytes_per_token: int | None
    flops_per_token: int
    tokens_per_second: float | None
    generated_tokens: int


def efficiency(model: LanguageModel, records: Sequence[Record]) -> Efficiency:
    """The cost of `model`, which is timed on the first prompts of `records`; without any it is not timed."""
    weights = [weight for name, weight in model.network.named_parameters() if "lora_" not in name]
    tokens, seconds = _timed(model, [prompt_ids(record, model.tokenizer) for record in records[:PROMPTS]])
    adapters = sum(weight.numel() for name, weight in model.network.named_parameters() if "lora_" in name)
    return Efficiency(
        parameters=sum(weight.numel() for weight in weights),
        weights_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        cache_bytes_per_token=_cache_bytes(model),
        flops_per_token=decoding_flops(model, [1], [1]) - 2 * adapters,
        tokens_per_second=tokens / seconds if tokens else None,
        generated_tokens=tokens,
    )


def _timed(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> tuple[int, float]:
    """Tokens and seconds of generation, after one token that warms up kernels and caches."""
    if not prompts:
        return 0, 0.0
    settings = {"batch_size": PROMPTS, "temperature": 0.0}
    generate(model, prompts, max_new_tokens=1, **settings)  # type: ignore[arg-type]
    started = time.perf_counter()
    answers = generate(model, prompts, max_new_tokens=TOKENS, **settings)  # type: ignore[arg-type]
    return sum(len(ids) for ids in answers), time.perf_counter() - started


def _cache_bytes(model: LanguageModel) -> int | None:
    """Bytes of a token's keys and values over all layers; None where layers keep something else."""
    config = model.network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not heads or hasattr(config, "kv_lora_rank") or not kinds <= {"full_attention", "sliding_attention"}:
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.network.dtype.itemsize
