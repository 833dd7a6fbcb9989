"""The skill's own verdict."""

from typing import ClassVar

import torch

from kd.rewards.verdicts import Verdicts, finite
from kd.types import Batch, Models, Skill


class Verifier(Verdicts):
    """The skill's `score` of each response's text: 1 right, 0 wrong, between them where the skill knows degrees.

    It reads what was written, a response that was cut off included: whatever it says by then counts.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, skill: Skill):
        super().__init__()
        self.skill = skill

    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`."""
        return [self.give(batch, self._scores(batch)) for batch in batches]

    def _scores(self, batch: Batch) -> torch.Tensor:
        scores = [self.skill.score(record, answer.text) for record in batch.records for answer in record.responses]
        return finite(torch.tensor(scores, dtype=torch.float32), f"the verifier of skill {self.skill.name}")
