"""Our own engine: the model itself, in this process (`kd.generators.generation`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd.generators import Row, shared
from kd.generators.generation import check_decoding, write
from kd.generators.sampling import Sampled
from kd.models.language_model import LanguageModel
from kd.types import Source, Written


class Torch:
    """The weights that write are the ones that learn, so they are never behind, and nothing is read again."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `kd.generators.Generator`."""
        return {}

    def check(self, *, max_new_tokens: int, temperature: float, top_p: float, samples: int) -> None:
        """See `kd.generators.Generator`."""
        check_decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples=samples)

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `kd.generators.Generator`: a prompt once for all its samples."""
        return shared(prompts, responses)

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
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """See `kd.generators.Generator` and `kd.generators.generation.write`."""
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
            progress=progress,
        )
