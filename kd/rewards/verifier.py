"""The skill's own verdict."""

from dataclasses import replace
from typing import ClassVar

import torch

from kd.rewards.verdicts import Verdicts, finite
from kd.types import Batch, Models, Skill


class Verifier(Verdicts):
    """The skill's `score` of each response's text: 1 right, 0 wrong, between them where the skill knows degrees.

    It reads what was written, a response that was cut off included: whatever it says by then counts. The skill is shown
    the record without responses, for the record's own may have given way to the one that is judged; `meta` has what it
    needs.
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
        bare = [(replace(record, responses=()), record.responses) for record in batch.records]
        scores = [self.skill.score(record, answer.text) for record, answers in bare for answer in answers]
        return finite(torch.tensor(scores, dtype=torch.float32), f"the verifier of skill {self.skill.name}")
