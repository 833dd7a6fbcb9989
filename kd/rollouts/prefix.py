"""The beginnings of responses, of a length that changes while a run goes on."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from kd.data.sequences import Encoder
from kd.rollouts import Rollout
from kd.rollouts.wrapping import Wrapping
from kd.rollouts.writing import Writing
from kd.schedules import Schedule
from kd.types import Batch, Models, Progress


class Prefix(Wrapping):
    """The first tokens of the responses that a writer generates, where it stops; their number follows a schedule.

    A teacher's signal is worth most at the beginning of a response, and short ones cost least: distillation from
    prefixes of a fixed length (arXiv 2602.15260), or a curriculum from short to long ones. A response that ends before
    is whole. The length of a step is logged as `prefix_length`; responses that are cut by it raise no warning.

    Args:
        writer: the rollout that generates: the student, on_policy.
        length: tokens, a number or a schedule {start, end, shape, begin, until} (`kd.schedules.Schedule`), rounded
            down. The writer's max_new_tokens bounds it.

    Raises:
        ValueError: a writer that wraps another one, a length below 1, or a schedule that is none.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """The number under its writer's settings."""
        return written

    def __init__(self, writer: Rollout, *, length: PositiveInt | Mapping[str, Any]):
        super().__init__(writer)
        if not isinstance(writer, Writing):
            raise ValueError(
                f"rollout.writer {type(writer).__name__} generates nothing itself, so that prefix cannot bound its "
                "responses; take on_policy as the writer, and wrap prefix in the other one"
            )
        self.bounded = writer
        self.schedule = Schedule.of(length if isinstance(length, Mapping) else {"start": length, "end": length})
        if min(self.schedule.start, self.schedule.end) < 1:
            raise ValueError(f"rollout.length={self.schedule} is below one token; let it start and end at 1 or more")
        self._lengths = [0.0, 0.0]  # their sum over the steps since the last report, and the steps

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's prompts with the beginnings of new responses."""
        self.bounded.longest = self.length(progress)
        self._lengths = [self._lengths[0] + self.bounded.longest, self._lengths[1] + 1]
        return self.writer(window, models, progress, encoder)

    def length(self, progress: Progress) -> int:
        """The longest response at the step that comes after `progress.step` steps."""
        return int(self.schedule(progress) + 1e-9)  # 0.1 x 30 is 2.9999999999999996

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The writer's report, and the length of prefixes."""
        total, steps = self._lengths
        self._lengths = [0.0, 0.0]
        return {**super().take_report(), "prefix_length": (total, steps)}
