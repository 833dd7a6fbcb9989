"""Responses in the order of their rewards: preferences from a verifier, a reward model or the teacher."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from kd.data.sequences import Encoder
from kd.rollouts import Rollout
from kd.rollouts.buffer import SIGNALS, merge, split
from kd.rollouts.wrapping import Wrapping
from kd.types import Batch, Models, Progress, Sequences


class Ranked(Wrapping):
    """The writer's groups with the best response first, whole or reduced to the best and the worst of each.

    Pairs for dpo and its kin from rewards (arXiv 2402.13116, section 3.2.4, and 2401.10020), lists for rrhf and pro. Of
    equal rewards the one generated first is first. A group whose best is not better than its worst by more than
    `margin`
    is dropped: it is in no loss and in no count. Where that would leave a rank without any group in a step, its
    shortest one is kept without a token that counts: no term learns from it, and it is in no count either.

    Args:
        writer: the rollout that generates, with two samples or more, scored by the run's reward.
        keep: best_and_worst: pairs | all.
        margin: least difference of rewards, exclusive.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset({"rewards"})
    ordered: ClassVar[bool | None] = True

    @staticmethod
    def responses_each(settings: Mapping[str, Any], written: int | None) -> int | None:
        """Two, or as many as are generated."""
        return 2 if settings.get("keep", "best_and_worst") == "best_and_worst" else written

    def __init__(
        self, writer: Rollout, *, keep: Literal["best_and_worst", "all"] = "best_and_worst", margin: float = 0.0
    ):
        super().__init__(writer)
        if self.samples < 2:
            raise ValueError(f"rollout.writer.samples={self.samples} leaves nothing to rank; set it to 2 or more")
        if margin < 0:
            raise ValueError(f"rollout.margin={margin} would prefer worse responses; set it to 0 or more")
        self.keep, self.margin = keep, margin
        self._dropped = [0, 0]  # groups without a preference, and all, since the last report

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The new responses, ranked. Raises ValueError where they have no rewards."""
        groups = split(self.writer(window, models, progress, encoder))
        decided = [group for group in groups if self._decided(group)]
        self._dropped = [self._dropped[0] + len(groups) - len(decided), self._dropped[1] + len(groups)]
        if groups and not decided:
            return [silent(_rows(min(groups, key=lambda g: g.student.tokens.numel()), [0] * self._size(groups[0])))]
        return merge([_rows(group, self._order(group)) for group in decided], encoder)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The writer's report, and the share of groups without a preference."""
        dropped, self._dropped = self._dropped, [0, 0]
        return {**super().take_report(), "without_preference": (dropped[0], dropped[1])}

    def _decided(self, group: Batch) -> bool:
        if group.rewards is None:
            raise ValueError(
                "rollout Ranked orders responses by their rewards, but they have none; take reward=verifier"
            )
        return float(group.rewards.max() - group.rewards.min()) > self.margin

    def _order(self, group: Batch) -> list[int]:
        order = group.rewards.argsort(descending=True, stable=True).tolist()  # type: ignore[union-attr]
        return order if self.keep == "all" else [order[0], order[-1]]

    def _size(self, group: Batch) -> int:
        return group.group_size if self.keep == "all" else 2


def _rows(group: Batch, rows: list[int]) -> Batch:
    """The responses at `rows` to one prompt, in this order."""
    student = group.student.at(rows)
    signals = {name: getattr(group, name) for name in SIGNALS}
    kept = replace(
        group,
        student=student,
        teacher=student if group.teacher is group.student else group.teacher.at(rows),
        records=tuple(replace(r, responses=tuple(r.responses[i] for i in rows)) for r in group.records),
        group_size=len(rows),
        **{name: None if value is None else value[rows] for name, value in signals.items()},
    )
    return split([kept])[0]  # no wider than the rows that are left


def silent(group: Batch) -> Batch:
    """The same sequences without loss rows; signals that are 0 where no label counts are 0 everywhere."""
    student = _masked(group.student)
    signals = {name: getattr(group, name) for name in SIGNALS}
    nothing: dict[str, Any] = {
        name: torch.zeros_like(value) for name, value in signals.items() if value is not None and value.dim() == 2
    }
    return replace(
        group,
        student=student,
        teacher=student if group.teacher is group.student else _masked(group.teacher),
        **nothing,
    )


def _masked(sequences: Sequences) -> Sequences:
    return replace(sequences, mask=torch.zeros_like(sequences.mask))
