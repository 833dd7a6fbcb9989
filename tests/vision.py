"""Vision-language models and records with images, small enough to draw."""

from typing import Any

import numpy as np

from kd.data.images import PLACE, drawn
from kd.models.language_model import LanguageModel
from kd.models.networks import scratch
from kd.seeding import seeded
from kd.types import Image, Record, Response

SIDE = 16  # pixels: four tokens for an image
IDEFICS3: dict[str, Any] = {
    "model_type": "idefics3",
    "scale_factor": 2,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # logits that differ by some nats
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 4,
        "initializer_range": 0.3,
    },
}


def tiny_vision(seed: int = 0, *, dtype: Any = "float64") -> LanguageModel:
    """A random vision-language model over bytes, the same for the same seed, in eval mode."""
    with seeded(seed, "tiny vision"):
        return scratch(architecture=IDEFICS3, dtype=dtype).eval()


def noise(seed: int, side: int = SIDE) -> Image:
    """An image of random pixels."""
    return drawn(np.random.default_rng(seed).integers(0, 256, (side, side, 3)))


def seen(i: int, question: str = "Which?", answer: str = "yes", images: int = 1) -> Record:
    """A question about images of its own."""
    shown = tuple(noise(10 * i + k) for k in range(images))
    prompt = ({"role": "user", "content": PLACE * images + question},)
    return Record(str(i), "seen", prompt, (Response(answer),), images=shown)
