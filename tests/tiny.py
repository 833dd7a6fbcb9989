"""Models and records small enough to draw."""

import random
from typing import Any

from kd.models.language_model import LanguageModel
from kd.models.networks import scratch
from kd.seeding import seeded
from kd.types import Record, Response

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # logits that differ by some nats
}
_GATED = {**LLAMA, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {  # what each does to its logits after the projection, made visible
    "llama": LLAMA,
    "qwen3": {**_GATED, "model_type": "qwen3"},
    "gemma2": {**_GATED, "model_type": "gemma2", "final_logit_softcapping": 0.7, "sliding_window": 4},
    "granite": {**LLAMA, "model_type": "granite", "logits_scaling": 3.0},
    "cohere": {**LLAMA, "model_type": "cohere", "logit_scale": 0.25},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.3,
    },
}


def tiny(seed: int = 0, *, dtype: Any = "float64", family: str = "llama", **changes: Any) -> LanguageModel:
    """A random model over bytes, the same for the same seed, in eval mode."""
    with seeded(seed, "tiny"):
        return scratch(architecture={**FAMILIES[family], **changes}, dtype=dtype).eval()


def record(i: int, question: str = "2 + 2 = ?", *answers: str) -> Record:
    """A conversation of one turn."""
    prompt = ({"role": "user", "content": question},)
    return Record(str(i), "toy", prompt, tuple(Response(answer) for answer in answers or ("4",)))


def records(n: int, seed: int = 0) -> list[Record]:
    """`n` conversations of different lengths, in random words."""
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choices("abcdefghij klmnopqrstuvwxyz.?!0123456789", k=draw.randrange(1, 40)))

    return [record(i, text(), text()) for i in range(n)]
