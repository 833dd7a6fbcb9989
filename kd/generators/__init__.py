"""The engines that write where one model writes alone: our own, or another that is given the weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kd.generators.settings import Decoding
from kd.models.language_model import LanguageModel
from kd.types import Source, Written


class Row(NamedTuple):
    """A prompt that was read once, and after it each of some responses but for its last token; in tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Read in all."""
        return self.prompt + sum(self.responses) - len(self.responses)


def shared(prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
    """One reading of each prompt for all its responses."""
    return [[Row(n, tuple(group))] for n, group in zip(prompts, responses, strict=True)]


@runtime_checkable
class Generator(Protocol):
    """Prompts in, responses out. One with something to tell has a `take_report` (`kd.types.Reports`)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its text depends on beside what it is called with, in plain Python; nothing for our own engine."""

    def check(self, decoding: Decoding) -> None:
        """Raises ValueError for what it would not write."""

    def read(self, prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
        """What the model has read, by prompt, for the responses just written (all lengths in tokens): a budget counts
        it."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        source: Source,
        version: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Written]]:
        """`decoding.samples` responses of `model` to each prompt: outer the prompts, inner the samples.

        Every rank calls it in the same steps, with no prompts where it has none: ranks may wait for each other.
        Random numbers come from torch's global generator.

        Args:
            prompts: ids.
            decoding: how many, how long, from which distribution, how many at a time.
            source: who is to be called their writer.
            version: optimizer steps that the weights have made; 0 for those that never change.
            progress: called with the number of prompts just finished.
        """
