"""The student's own responses, generated with the weights of the current step."""

from typing import ClassVar

from kd.data.sequences import Encoder
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Models, Progress


class OnPolicy(Writing):
    """`samples` responses of the student to every prompt of the window (arXiv 2306.13649, with lambda = 1).

    All prompts of the window are decoded together, `batch_size` at a time, whatever its micro-batches are; the
    responses form new micro-batches. The settings are those of `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, scored by the reward."""
        records = records_of(window)
        responses = self.by_one(models.student, records, encoder, version=progress.step)
        return judged(encoder.written(records, responses), models)
