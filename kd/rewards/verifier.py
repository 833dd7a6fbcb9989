"""The score of the skill's verifier as the reward of a response."""

import math
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch

from kd.metrics.table import of_skill
from kd.rewards.base import ResponseReward
from kd.skills.scoring import scored_all
from kd.types import Batch, Models, Skill


class Verifier(ResponseReward):
    """The skill's `score` of each response's text: 1 right, 0 wrong, between them where the skill has degrees. A metric
    with another range or direction is scaled, from 0 for its worst value to 1 for its best.

    Truncated responses are scored like others. The skill receives the record without responses, for the record's own
    may have been replaced by the scored one; `meta` has what the skill needs. A response for which the verifier returns
    no score (it raises an error, exits, or is stopped at a limit) is wrong, and the share of these is logged as
    `verifier_errors`.

    Raises:
        ValueError: the metric has no best value; or, with the record's name, a score is outside of its range, or the
            verifier fails on the reference, too.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset()
    largest_difference: ClassVar[float] = 1.0  # of two rewards

    def __init__(self, skill: Skill):
        super().__init__()
        self.skill, self.metric = skill, of_skill(skill.metric)
        if not math.isfinite(self.metric.best):
            raise ValueError(
                f"reward=verifier: the metric {self.metric.name} of skill {skill.name} has no best value, so a "
                "score is no share of it; give the metric a range with two ends, or take another reward"
            )
        self._failures = (0.0, 0.0)  # responses without a score, and all

    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`."""
        return [self.give(batch, self._scores(batch)) for batch in batches]

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The means of each writer, and the share of responses that the verifier failed on."""
        failures, self._failures = self._failures, (0.0, 0.0)
        return {**super().take_report(), "verifier_errors": failures}

    def _scores(self, batch: Batch) -> torch.Tensor:
        bare = [replace(record, responses=()) for record in batch.records]
        pairs = [(own, one.text) for own, full in zip(bare, batch.records, strict=True) for one in full.responses]
        found = scored_all(self.skill, pairs, reference=lambda record: self._references.get(record.id))
        failures, count = self._failures
        self._failures = failures + sum(one.error is not None for one in found), count + len(found)
        return torch.tensor([self.metric.share(one.score) for one in found], dtype=torch.float32)

    @cached_property
    def _references(self) -> dict[str, str]:
        """A right answer to each training record."""
        return {record.id: record.responses[0].text for record in self.skill.load("train") if record.responses}
