"""Rewards: scores of responses by a skill's verifier, a reward model, the teacher, a discriminator, or a judge."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from kd.types import Batch, Models


@runtime_checkable
class Reward(Protocol):
    """A score of new responses, computed once: a buffer keeps it with the response.

    A subclass has `provides`, `requires` and `__call__`; all other members have defaults. The cost of reading a teacher
    is counted by `kd.teachers.interface.Teacher.read`; the cost of a network of its own is charged by the reward
    itself, as `kd.generators.account.Spent(judge_flops=...)`.

    provides: names of `kd.signals.FROM_REWARD` that it fills.
    requires: signals of the models that it reads.
    of_records: whether it scores the responses that records came with, and no others.
    of_domains: whether it compares the domains of several teachers (`kd.teachers.routed`).
    largest_difference: the largest difference of two rewards; None: not bounded.
    learns: whether it is one of the objective's terms, the one that its setting `term` names (`bind`).
    model: the network that it reads with, where it has one.
    """

    provides: ClassVar[frozenset[str]]
    requires: ClassVar[frozenset[str]]
    of_records: ClassVar[bool] = False
    of_domains: ClassVar[bool] = False
    largest_difference: ClassVar[float | None] = None
    learns: ClassVar[bool] = False
    model: Any = None

    @abstractmethod
    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The batches of one optimizer step on this rank, with `rewards` [B] or `advantages` [B T] filled.

        It is called on every rank at every step that generates, so it may sum over ranks.
        """

    def bind(self, terms: Mapping[str, Any]) -> None:
        """Receives the objective's terms by name, before the first step."""
        return None

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`."""
        return {}


def judged(batches: list[Batch], models: Models) -> list[Batch]:
    """The batches scored by `models.reward`, where there is one."""
    return batches if models.reward is None else models.reward(batches, models)
