"""How good a response is: told by a skill's verifier, a reward model, the teacher, a discriminator, or a judge."""

from typing import Protocol, runtime_checkable

from kd.types import Batch, Models


@runtime_checkable
class Reward(Protocol):
    """Judges what was just written, once: a buffer keeps the verdict with the response."""

    provides: frozenset[str]  # names of kd.signals.FROM_REWARD that it fills
    requires: frozenset[str]  # signals of the models that it reads

    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The batches of one optimizer step on this rank, with `rewards` [B] or `advantages` [B T] filled.

        It is called on every rank at every step that writes, so it may sum over ranks.
        """


def judged(batches: list[Batch], models: Models) -> list[Batch]:
    """What `models.reward` says of the batches, where there is one."""
    return batches if models.reward is None else models.reward(batches, models)
