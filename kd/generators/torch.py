"""Our own engine: the model itself, in this process (`kd.models.generation`)."""

from collections.abc import Sequence
from typing import ClassVar

from kd.models.generation import write
from kd.models.language_model import LanguageModel
from kd.models.sampling import Sampled
from kd.types import Source, Written


class Torch:
    """The weights that write are the ones that learn, so they are never behind, and nothing is read again."""

    reads_again: ClassVar[bool] = False

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int,
        sampled: Sampled,
        batch_size: int,
        source: Source = "student",
        version: int = 0,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator` and `kd.models.generation.write`."""
        if not prompts:
            return []
        return write(
            [model],
            prompts,
            samples=samples,
            max_new_tokens=max_new_tokens,
            choose=sampled,
            batch_size=batch_size,
            source=source,
        )
