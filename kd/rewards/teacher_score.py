"""The teacher's log-probability of a response as its reward."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kd.rewards.base import ResponseReward, finite
from kd.teachers.interface import Teacher
from kd.types import Batch, Models


class TeacherScore(ResponseReward):
    """The teacher's log-probability of a response in nats, end token included: the likelihood of its own tokens.

    No reward model is trained; the teacher's likelihood stands for its approval (arXiv 2402.13116, section 3.2.3, on
    rewards from feedback of the teacher). The teacher may have a tokenizer of its own.

    Args:
        normalise: token: the mean over the response's tokens, so that longer responses are not worse for their length
            | none: the sum, the log-probability of the whole.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset({"native_teacher_logprobs"})

    def __init__(self, *, normalise: Literal["token", "none"] = "token"):
        super().__init__()
        self.normalise = normalise

    @torch.no_grad()
    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`; the teacher reads each of them once."""
        device = models.student.network.device  # the student's live teacher has no parameters of its own
        return [self.give(batch, self._score(batch, models.teacher, device)) for batch in batches]

    def _score(self, batch: Batch, teacher: Teacher, device: torch.device) -> Float[Tensor, " B"]:
        logprobs, mask = teacher.read(batch, frozenset({"logprobs"}), device).logprobs, batch.teacher.mask.to(device)
        assert logprobs is not None
        total = torch.where(mask, logprobs.double(), 0.0).sum(-1)
        scores = total if self.normalise == "none" else total / mask.sum(-1).clamp(min=1)
        return finite(scores, "reward TeacherScore")
