"""The engines that generate where one model generates alone: our own, or another that is given the weights."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from kd.generators.account import Row, charge_generation, shared
from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Source, Written

__all__ = ["Generator", "Row", "shared"]


@runtime_checkable
class Generator(Protocol):
    """Prompts in, responses out. An engine is a subclass that has `generate`; calling it also charges what it costs."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its text depends on beside what it is called with, in plain Python; nothing for our own engine."""
        return {}

    def check(self, decoding: Decoding) -> None:
        """Raises ValueError for what it would not generate."""
        decoding.check()

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """What the model has read, by prompt, for the responses just generated (all lengths in tokens): a prompt once
        for all its samples, unless an engine does otherwise."""
        return shared(prompts, responses)

    @abstractmethod
    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source,
        version: int,
        progress: Callable[[int], None] | None,
    ) -> list[list[Written]]:
        """`decoding.samples` responses of `model` to each prompt: outer the prompts, inner the samples.

        Every rank calls it in the same steps, with no prompts where it has none: ranks may wait for each other.
        Random numbers come from torch's global generator.

        Args:
            prompts: ids.
            decoding: how many, how long, from which distribution, how many at a time.
            source: which model they are by: their `Written.source`.
            version: optimizer steps that the weights have made; 0 for those that never change.
            progress: called with the number of prompts just finished.
        """

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
        """The responses of `generate`, whose cost goes to every open meter (`kd.generators.account`)."""
        started = time.perf_counter()
        responses = self.generate(model, prompts, decoding=decoding, source=source, version=version, progress=progress)
        seconds = time.perf_counter() - started
        lengths = [[len(answer.ids) for answer in group] for group in responses]
        read = self.read([len(prompt) for prompt in prompts], lengths)
        charge_generation([model], read, responses, source=source, seconds=seconds)
        return responses

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the next responses depend on, in plain Python and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        return None
