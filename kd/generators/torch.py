"""Our own engine: the model itself, in this process (`kd.generators.generation`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd.generators import Row, shared
from kd.generators.generation import write
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Source, Written


class Torch:
    """The weights that write are the ones that learn, so they are never behind, and nothing is read again."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `kd.generators.Generator`."""
        return {}

    def check(self, decoding: Decoding) -> None:
        """See `kd.generators.Generator`."""
        decoding.check()

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `kd.generators.Generator`: a prompt once for all its samples."""
        return shared(prompts, responses)

    def __call__(
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
        return write(
            [model],
            prompts,
            samples=decoding.samples,
            max_new_tokens=decoding.max_new_tokens,
            choose=decoding.sampled,
            batch_size=decoding.batch_size,
            source=source,
            progress=progress,
        )
