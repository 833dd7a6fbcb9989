"""The engine that generates the answers of an evaluation, for one system after another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd.generators import Generator
from kd.generators.generation import write
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Written

APART = 2**20  # steps between the versions of two systems: more than weights may ever be behind


class Engine:
    """An engine of `kd.generators`, or our own.

    One that holds weights is given those of each system before it generates for it. It can hold models of one shape,
    that of the first system; our own engine generates for others, as for a teacher of another size.
    """

    def __init__(self, generator: Generator | None = None):
        self.generator = generator
        self._shape: Any = None  # of the models that the engine's weights are of
        self._held: str | None = None
        self._version = 0

    def settings(self, system: LanguageModel) -> Mapping[str, Any]:
        """The settings that the system's texts depend on beside the decoding; empty for our own engine."""
        return self.generator.settings if self.generator is not None and self.takes(system) else {}

    def takes(self, system: LanguageModel) -> bool:
        """Return whether the engine, and not our own, generates for the system."""
        if self.generator is None or not self.generator.holds_weights:
            return self.generator is not None
        shape = [(name, tuple(one.shape)) for name, one in system.network.state_dict().items()]
        self._shape = self._shape or shape
        return self._shape == shape

    def serves(self, first: LanguageModel, *others: Any) -> bool:
        """Return whether the engine, where there is one, takes all of the language models among these."""
        models = [one for one in (first, *others) if isinstance(one, LanguageModel)]
        return self.generator is None or all(map(self.takes, models))

    def __call__(
        self,
        system: LanguageModel,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        identity: str = "",
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """The system's responses to each prompt.

        identity: names the system's content: weights are transferred where it is another than before.
        """
        if self.generator is not None and self.takes(system):
            if identity != self._held:
                self._version, self._held = self._version + APART, identity
            version = self._version
            return self.generator(system, prompts, decoding=decoding, version=version, progress=progress)
        return write(
            [system],
            prompts,
            samples=decoding.samples,
            max_new_tokens=decoding.max_new_tokens,
            choose=decoding.sampled,
            batch_size=decoding.batch_size,
            progress=progress,
        )
