"""The student's own responses, written with the weights of this very step."""

from typing import ClassVar

from kd.generators import Generator
from kd.models.generation import check_decoding
from kd.models.sampling import Sampled
from kd.rewards import judged
from kd.rollouts import Spent
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.sequences import Encoder
from kd.types import Batch, Models, Progress


class OnPolicy:
    """The student answers every prompt of the window `samples` times (arXiv 2306.13649, with lambda = 1).

    All prompts of the window are decoded together, `batch_size` at a time, whatever its micro-batches are; the
    responses are cut into micro-batches anew.

    Args:
        samples: responses to each prompt; they stay adjacent, as one group.
        max_new_tokens: bound on a response, together with what the prompt leaves of the encoder's max_length.
        temperature, top_p: see `kd.models.sampling.Sampled`.
        batch_size: responses decoded together.
        generator: the engine that writes (`kd.generators`); None: our own.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int = 16,
        generator: Generator | None = None,
    ):
        check_decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples=samples)
        self.samples, self.max_new_tokens, self.batch_size = samples, max_new_tokens, batch_size
        self.sampled, self.writing = Sampled(temperature, top_p), Writing(generator)

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the responses just written, judged."""
        records = records_of(window)
        responses = self.writing.alone(
            models.student,
            records,
            encoder,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            sampled=self.sampled,
            batch_size=self.batch_size,
            version=progress.step,
        )
        return judged(encoder.written(records, responses), models)

    def spent(self) -> Spent:
        """See `kd.rollouts.Spent`."""
        return self.writing.spent()

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.rollouts.writing.Writing`."""
        return self.writing.take_report()
