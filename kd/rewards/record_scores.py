"""Scores that the records came with, from a judge that was asked before, say."""

from typing import ClassVar

import torch

from kd.rewards.base import Verdicts, finite
from kd.types import Batch, Models


class RecordScores(Verdicts):
    """`Response.score` of each response, as a skill, a data file or an augmentation wrote it.

    For rollouts that keep responses, since what the student writes now nobody can have judged before.
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
                        "reward=verifier, or records whose responses were judged"
                    )
                scores.append(answer.score)
        return finite(torch.tensor(scores, dtype=torch.float32), "the records' scores")
