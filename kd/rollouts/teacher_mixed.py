"""Responses of student and teacher together, each token drawn from a mixture of their distributions."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from kd.data.sequences import Encoder
from kd.generators import Generator
from kd.generators.sampling_pairs import Mixed
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.types import Batch, Models, Progress

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(kw_only=True, eq=False)
class TeacherMixed(Writing):
    """Responses whose tokens are drawn from p~ = alpha p + (1 - alpha) q, so that degenerate text of the student is
    rare (MiniLLM, arXiv 2306.08543, section 2.2).

    `importance_weights` are w_t = q(y_t) / p~(y_t), the paper's single-step approximation to the product over all
    tokens up to t; q is the student's own distribution at temperature 1. At that temperature of sampling too, no weight
    is above 1 / (1 - alpha).

    Args:
        alpha, temperature: see `kd.generators.sampling_pairs.Mixed`.
        samples, max_new_tokens, batch_size: as for `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset(
        {"group_size", "written_by", "behaviour_logprobs", "old_logprobs", "importance_weights"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "teacher_logits"})
    one_vocabulary: ClassVar[bool] = True  # ids mean the same to both

    alpha: Share = 0.2
    top_p: float = field(default=1.0, init=False)
    generator: Generator | None = field(default=None, init=False)  # both models choose each token

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose = Mixed(self.alpha, temperature=self.temperature)

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, weighted, and scored by the reward."""
        records = records_of(window)
        responses = self.by_several([models.student, models.teacher.model], records, encoder, self.choose)
        batches = encoder.written(records, responses)
        for batch in batches:
            weigh(batch)
        return judged(batches, models)


def weigh(batch: Batch) -> None:
    """Sets `importance_weights`: the student's probability of each label over the one that it was drawn with."""
    if batch.old_logprobs is not None and batch.behaviour_logprobs is not None:
        batch.importance_weights = (batch.old_logprobs - batch.behaviour_logprobs).exp() * batch.student.mask
