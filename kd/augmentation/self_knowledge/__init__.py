"""Self-knowledge: stages in which the student makes its own training records (arXiv 2402.13116, section 3.1.6).

The student is that before the first step, in a loop that of the round before (docs/loops.md).
"""

from collections.abc import Sequence
from typing import ClassVar

from kd.augmentation import Resources, Stage
from kd.generators import Generator
from kd.generators.settings import Decoding
from kd.generators.torch import Torch
from kd.types import Record, Response


class SelfGenerating(Stage):
    """A stage in which the student generates responses.

    Args:
        samples: responses to each prompt.
        max_new_tokens: a response that long is truncated.
        temperature, top_p: of the distribution that each token is drawn from; temperature 0 is greedy.
        batch_size: responses decoded together.
        generator: the engine that generates (`kd.generators`), in this process; None: our own.

    Raises:
        ValueError: nothing sensible can be decoded.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})

    def __init__(
        self,
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 16,
        generator: Generator | None = None,
    ):
        self.generator: Generator = Torch() if generator is None else generator
        self.decoding = Decoding(max_new_tokens, samples, temperature, top_p, batch_size)
        self.generator.check(self.decoding)

    def responses(self, resources: Resources, prompts: Sequence[Record], what: str) -> list[tuple[Response, ...]]:
        """The student's responses to each prompt, under the name `what`."""
        found = resources.generate("student", prompts, self.decoding, what=what, engine=self.generator)
        return [tuple(Response(text, "student") for text in answers.texts) for answers in found]
