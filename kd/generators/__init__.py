"""The engines that write where one model writes alone: our own, or another that is given the weights."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from kd.models.language_model import LanguageModel
from kd.models.sampling import Sampled
from kd.types import Source, Written


@runtime_checkable
class Generator(Protocol):
    """Prompts in, responses out. One with something to tell has a `take_report` (`kd.types.Reports`)."""

    reads_again: ClassVar[bool]  # whether the model reads what was written once more: what a budget counts

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_new_tokens: int,
        sampled: Sampled,
        batch_size: int,
        source: Source,
        version: int,
    ) -> list[list[Written]]:
        """`samples` responses of `model` to each prompt: outer the prompts, inner the samples.

        Every rank calls it in the same steps, with no prompts where it has none: ranks may wait for each other.
        Random numbers come from torch's global generator.

        Args:
            prompts: ids.
            sampled: from which distribution each token is drawn.
            batch_size: responses that the model writes, or reads, at a time.
            source: who is to be called their writer.
            version: optimizer steps that the weights have made; 0 for those that never change.
        """
