"""The student's own responses, written with the weights of this very step."""

from typing import ClassVar

from kd.models.flops import decoding_flops
from kd.models.generation import check_decoding, generate
from kd.sequences import Encoder, encode_prompt
from kd.types import Batch, Models, Progress


class OnPolicy:
    """The student answers every prompt of the window `samples` times (arXiv 2306.13649, with lambda = 1).

    All prompts of the window are decoded together, `batch_size` at a time, whatever its micro-batches are; the
    responses are cut into micro-batches anew. `generated_tokens` and `decoding_flops` count since the start.

    Args:
        samples: responses to each prompt; they stay adjacent, as one group.
        max_new_tokens: bound on a response, together with what the prompt leaves of the encoder's max_length.
        temperature, top_p, batch_size: see `kd.models.generation.generate`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int = 16,
    ):
        check_decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples=samples)
        self.samples, self.max_new_tokens = samples, max_new_tokens
        self.temperature, self.top_p, self.batch_size = temperature, top_p, batch_size
        self.generated_tokens, self.decoding_flops = 0, 0

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the responses just written."""
        records = [record for batch in window for record in batch.records]
        prompts = [encode_prompt(record.prompt, encoder.student) for record in records]
        room = encoder.max_length - min(map(len, prompts))
        responses = generate(
            models.student,
            [prompt for prompt in prompts for _ in range(self.samples)],
            max_new_tokens=min(self.max_new_tokens, room),  # what is longer would be cut off again
            temperature=self.temperature,
            top_p=self.top_p,
            batch_size=self.batch_size,
        )
        written = list(map(len, responses))
        self.generated_tokens += sum(written)
        read = [len(prompt) for prompt in prompts for _ in range(self.samples)]
        self.decoding_flops += decoding_flops(models.student, read, written)
        groups = [responses[start : start + self.samples] for start in range(0, len(responses), self.samples)]
        return encoder.written(records, groups)
