"""Our own engine: the model itself, in this process (`kd.generators.generation`)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from kd.generators import Generator
from kd.generators.generation import decode
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Source, Written


class Torch(Generator):
    """Generation with the weights that learn, so that they are never behind and no response is scored again."""

    is_default: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source = "student",
        version: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator` and `kd.generators.generation.write`."""
        if not prompts:
            return []
        return decode(
            [model],
            prompts,
            samples=decoding.samples,
            max_new_tokens=decoding.max_new_tokens,
            choose=decoding.sampled,
            batch_size=decoding.batch_size,
            source=source,
            progress=progress,
        )
