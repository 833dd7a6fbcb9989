"""Scores that the records came with, for example from an earlier run of a judge."""

from typing import ClassVar

import torch

from kd.rewards.base import ResponseReward, finite
from kd.types import Batch, Models


class RecordScores(ResponseReward):
    """`Response.score` of each response, from a skill, a data file or an augmentation.

    For rollouts that keep responses, since new responses of the student have no scores yet.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset()
    of_records: ClassVar[bool] = True  # read by kd.composition: for rollouts that keep them

    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`. Raises ValueError for a response without a score."""
        return [self.give(batch, self._scores(batch)) for batch in batches]

    def _scores(self, batch: Batch) -> torch.Tensor:
        scores = []
        for record in batch.records:
            for answer in record.responses:
                if answer.score is None:
                    raise ValueError(
                        f"record {record.id} has a response by the {answer.source} without a score; take "
                        "reward=verifier, or records whose responses have scores"
                    )
                scores.append(answer.score)
        return finite(torch.tensor(scores, dtype=torch.float32), "the records' scores")
