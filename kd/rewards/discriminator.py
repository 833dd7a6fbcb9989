"""The score of a network that learns, in the same run, to distinguish the student's responses from others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from kd.generators.account import Spent, charge
from kd.models.flops import scoring_flops
from kd.rewards.base import ResponseReward, finite
from kd.signals import hook
from kd.types import WRITERS, Batch, Models

STUDENT = WRITERS.index("student")


class Discriminator(ResponseReward):
    """D(y) of the student's responses, D the objective's term at this step: GAD, arXiv 2511.10643, eq. 2.

    The response of another writer, which the student's are compared with, gets the mean reward of the student's own in
    its group: the group's mean stays that of the student's, so in a policy gradient that takes rewards less their
    group's mean the others have advantage 0, and nothing is learnt from texts that the student did not generate. A
    group's deviation is over the student's own where the objective requires `written_by`
    (`kd.objectives.policy.grpo_among_own`).

    Reported are D's scores of all responses, and `discriminator_accuracy`, the share of the student's responses that D
    scores below the first one of their group; 0.5 is chance. D's cost here is charged as `judge_flops`
    (`kd.generators.account`).

    Args:
        term: the objective's name for the term that learns (`kd.objectives.adversarial.Discriminator`).
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset({"written_by", "group_size"})
    learns: ClassVar[bool] = True

    def __init__(self, *, term: str = "discriminator"):
        super().__init__()
        self.term = term
        self.discriminator: Any = None
        self._compared = (0.0, 0.0)  # responses scored below the first, and the number compared

    def bind(self, terms: Mapping[str, Any]) -> None:
        """Receives the objective's terms by name. Raises ValueError where none of them is a discriminator."""
        if hook(terms.get(self.term), "judge") is None:
            raise ValueError(
                f"reward Discriminator is the objective's term {self.term}, but the objective has "
                f"{', '.join(terms)}; take objective=gad, or set reward.term"
            )
        self.discriminator = terms[self.term]

    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`."""
        return [self._judged(batch) for batch in batches]

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The mean rewards, and D's accuracy."""
        compared, self._compared = self._compared, (0.0, 0.0)
        return {**super().take_report(), "discriminator_accuracy": compared}

    def _judged(self, batch: Batch) -> Batch:
        if batch.written_by is None:
            raise ValueError(
                "reward Discriminator requires the writer of each response (written_by); take rollout=demonstrated"
            )
        judged = finite(self.discriminator.judge(batch.student), "the discriminator")
        charge(Spent(judge_flops=scoring_flops(*self.discriminator.reading(batch.student))))
        scores = judged.cpu().view(-1, batch.group_size)
        own = batch.written_by.cpu().view(-1, batch.group_size) == STUDENT
        below = (scores < scores[:, :1])[:, 1:][own[:, 1:]]
        self._compared = self._compared[0] + float(below.sum()), self._compared[1] + below.numel()
        count = own.sum(-1, keepdim=True)
        mean = torch.where(own, scores, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
        return self.give(batch, torch.where(own, scores, mean).flatten(), scores.flatten())
