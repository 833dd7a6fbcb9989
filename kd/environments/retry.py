"""Another attempt after a wrong answer."""

import math
from typing import Annotated

from pydantic import Field

from kd.environments.interface import END, Environment, Observation
from kd.metrics.table import of_skill
from kd.skills.scoring import scored
from kd.types import Message, Record, Skill

Share = Annotated[float, Field(ge=0, le=1)]


class Retry(Environment):
    """The skill's verifier as the partner: a dialogue ends with an answer that it accepts, and another is to be mended.

    Args:
        skill: scores the text of each turn.
        message: the observation after a wrong answer.
        success: the least share of the metric's best value, from 0 for its worst to 1, of an answer that is accepted.

    Raises:
        ValueError: the metric has no best value.
    """

    def __init__(self, *, skill: Skill, message: str, success: Share = 1.0):
        self.skill, self.message, self.success = skill, message, success
        self.metric = of_skill(skill.metric)
        if not math.isfinite(self.metric.best):
            raise ValueError(
                f"rollout.environment Retry: the metric {self.metric.name} of skill {skill.name} has no best value, so "
                "that no answer would be accepted; take a skill whose metric has a range with two ends"
            )
        self.record: Record | None = None

    def reset(self, record: Record) -> tuple[Message, ...]:
        """The record's own prompt."""
        self.record = record
        return record.prompt

    def step(self, text: str) -> Observation:
        """The end after an answer that is accepted, else the message; `failed` where the verifier returned no score."""
        assert self.record is not None
        right = self.record.responses[0].text if self.record.responses else ""
        found = scored(self.skill, self.record, text, reference=lambda: right or None)
        if found.error is None and self.metric.share(found.score) >= self.success:
            return END
        return Observation(self.message, failed=found.error is not None)
