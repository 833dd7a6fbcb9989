"""Responses that more than one step learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from kd.data.sequences import Encoder
from kd.generators.generation import read_again
from kd.rollouts import Rollout
from kd.rollouts.buffer import Buffer, Group, merge
from kd.rollouts.wrapping import Wrapping, records_of
from kd.types import Batch, Models, Progress


class Replay(Wrapping):
    """New responses at every `uses`-th step, and replayed ones at the steps between.

    Each window comes `uses` times from the data, so with a buffer of one window (the default) each of `uses` steps
    learns from the same responses, perhaps in other micro-batches: the epochs of PPO (arXiv 1707.06347). From a larger
    buffer as many groups as the window has records are drawn without replacement.

    The signals computed when the responses were generated (rewards, advantages, the writer's log-probabilities) are
    kept with them; student and teacher read them again at every step.

    Args:
        writer: the rollout that generates.
        uses: steps for each window.
        capacity: sequences in each rank's buffer, the newest; None: those of one window.
        max_age: steps after which a response is dropped; where that leaves none, new ones are generated. None: no
            limit.
        importance_bound: weigh every token by its probability now over that when it was generated, times the writer's
            own weight where it provides one (teacher_mixed), at most this (arXiv 2006.10742 and others truncate so);
            one more forward pass of the student, without gradient. None: the writer's weights if any, for objectives
            that correct for the age of responses by `old_logprobs` themselves.
    """

    provides: ClassVar[frozenset[str]] = frozenset(
        {"group_size", "written_by", "behaviour_logprobs", "old_logprobs", "importance_weights"}
    )
    adds: ClassVar[frozenset[str]] = frozenset({"importance_weights"})

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """As many as are generated."""
        return written

    def __init__(
        self,
        writer: Rollout,
        *,
        uses: int = 2,
        capacity: int | None = None,
        max_age: int | None = None,
        importance_bound: float | None = None,
    ):
        super().__init__(writer)
        _check(uses, capacity, max_age, importance_bound)
        self.uses, self.capacity, self.max_age, self.importance_bound = uses, capacity, max_age, importance_bound
        self.buffer = Buffer(1 if capacity is None else capacity)
        self.wrote_at: int | None = None  # step
        self.age = [0.0, 0.0]  # of the sequences learnt from, in steps, and their number, since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """New responses, or responses from the buffer."""
        if self._is_due(progress.step):
            return self._written(window, models, progress, encoder)
        if self.max_age is not None:
            self.buffer.expire(progress.step - self.max_age)
        groups = self.buffer.sample(len(records_of(window)))
        self._note(groups, progress)
        batches = merge([group.batch for group in groups], encoder)
        if self.importance_bound is None:
            return batches
        return [self._weighted(batch, models) for batch in batches]

    def _is_due(self, step: int) -> bool:
        """True if this step generates: a function of the step alone, so the same on all ranks."""
        if step % self.uses == 0 or self.wrote_at is None:
            return True
        return self.max_age is not None and step - self.wrote_at > self.max_age

    def _written(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        batches = self.writer(window, models, progress, encoder)
        if self.importance_bound is not None and any(batch.old_logprobs is None for batch in batches):
            raise ValueError(
                f"rollout.importance_bound={self.importance_bound} needs the student's log-probabilities at the time "
                f"of writing, which rollout.writer {type(self.writer).__name__} does not provide; set it to null"
            )
        if self.capacity is None:
            self.buffer = Buffer(sum(len(batch.records) * batch.group_size for batch in batches) or 1)
        self.buffer.add(batches, progress.step)
        self.wrote_at = progress.step
        self.age[1] += sum(len(batch.records) * batch.group_size for batch in batches)
        return [self._bounded(batch) for batch in batches]

    def _bounded(self, batch: Batch) -> Batch:
        """The batch with the writer's own weights bounded, as at later uses; the buffer keeps them unbounded."""
        if self.importance_bound is None or batch.importance_weights is None:
            return batch
        return replace(batch, importance_weights=batch.importance_weights.clamp(max=self.importance_bound))

    def _note(self, groups: Sequence[Group], progress: Progress) -> None:
        self.age[0] += sum(group.size * (progress.step - group.step) for group in groups)
        self.age[1] += sum(group.size for group in groups)

    def _weighted(self, batch: Batch, models: Models) -> Batch:
        """The batch weighted by exp(log-probability now - then) at each label, times the writer's weight, bounded."""
        assert batch.old_logprobs is not None  # else it would not be kept
        then = batch.old_logprobs
        ratios = (read_again(models.student, batch.student).to(then.dtype) - then).exp()
        if batch.importance_weights is not None:  # q then over the distribution that the tokens were drawn from
            ratios = ratios * batch.importance_weights
        return replace(batch, importance_weights=ratios.clamp(max=self.importance_bound) * batch.student.mask)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The writer's report, and the age of the responses in steps."""
        age, self.age = self.age, [0.0, 0.0]
        return {**super().take_report(), "staleness": (age[0], age[1])}

    def state_dict(self) -> dict[str, Any]:
        """See `kd.rollouts.Rollout`; also the buffer, and the writer's state."""
        own = {"buffer_capacity": self.buffer.capacity, "buffer": self.buffer.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.buffer = Buffer(state["buffer_capacity"])
        self.buffer.load_state_dict(state["buffer"])


def _check(uses: int, capacity: int | None, max_age: int | None, importance_bound: float | None) -> None:
    if uses < 1:
        raise ValueError(f"rollout.uses={uses} learns from nothing; set it to 1 or more")
    if max_age is not None and max_age < 0:
        raise ValueError(f"rollout.max_age={max_age} is no number of steps; set it to 0 or more, or null")
    if capacity is not None and capacity < 1:
        raise ValueError(f"rollout.capacity={capacity} keeps nothing; set it to the sequences of a window, or null")
    if importance_bound is not None and importance_bound <= 0:
        raise ValueError(f"rollout.importance_bound={importance_bound} leaves no weight; set it above 0, or null")
