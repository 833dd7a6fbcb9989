"""Responses of the student in which tokens that the teacher finds unlikely are replaced by the teacher's."""

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from kd.data.sequences import Encoder
from kd.generators import Generator
from kd.generators.sampling_pairs import Interleaved
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Nucleus, Writing
from kd.types import Batch, Models, Progress


@dataclass(kw_only=True, eq=False)
class Speculative(Writing):
    """Tokens proposed by the student; one outside the teacher's `top_k` is replaced by a draw from the teacher (SKD,
    arXiv 2410.11325).

    As the student learns, fewer are replaced, and the responses pass from the teacher's to the student's own; the share
    that was kept is reported as `kept_share`. Nothing corrects for the replacements, as in the paper; for terms that
    do, the exact probabilities of this process are in `behaviour_logprobs`.

    Args:
        top_k, temperature, top_p, teacher_temperature, teacher_top_p: see `kd.generators.sampling_pairs.Interleaved`.
        samples, max_new_tokens, batch_size: as for `kd.rollouts.writing.Writing`.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher", "teacher_logits"})
    one_vocabulary: ClassVar[bool] = True  # ids mean the same to both

    top_k: PositiveInt = 25
    temperature: NonNegativeFloat = 0.5
    top_p: Nucleus = 0.5
    teacher_temperature: NonNegativeFloat = 0.2
    teacher_top_p: Nucleus = 0.5
    generator: Generator | None = field(default=None, init=False)  # both models choose each token

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose = Interleaved(
            self.top_k,
            temperature=self.temperature,
            top_p=self.top_p,
            teacher_temperature=self.teacher_temperature,
            teacher_top_p=self.teacher_top_p,
        )

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with new responses, scored by the reward."""
        records = records_of(window)
        responses = self.by_several([models.student, models.teacher.model], records, encoder, self.choose)
        return judged(encoder.written(records, responses), models)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of `kd.rollouts.writing.Writing`, and the share of the student's proposals that were kept."""
        return {**super().take_report(), "kept_share": self.choose.take_kept()}
