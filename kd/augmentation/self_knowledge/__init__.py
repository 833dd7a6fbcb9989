"""Self-knowledge: stages in which the student makes its own training records (arXiv 2402.13116, section 3.1.6).

The student is that before the first step, in a loop that of the round before (docs/loops.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.answering import is_missing
from kd.augmentation.generation import Generating
from kd.generators.settings import Decoding, Samples
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class SelfGenerating(Generating):
    """A stage in which the student generates responses.

    Args:
        samples: responses to each prompt.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    Raises:
        ValueError: nothing sensible can be decoded.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})

    samples: Samples = 1

    @property
    def decoding(self) -> Decoding:
        """Of the responses."""
        return Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.batch_size)

    def responses(self, resources: Resources, prompts: Sequence[Record], what: str) -> list[tuple[Response, ...]]:
        """The student's responses to each prompt, under the name `what`; none where the prompt leaves no room."""
        found = resources.generate("student", prompts, self.decoding, what=what, engine=self.engine)
        return [() if is_missing(one) else tuple(Response(text, "student") for text in one.texts) for one in found]
