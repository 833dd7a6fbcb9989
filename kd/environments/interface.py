"""The interface of environments: the partner of a model in a dialogue."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kd.types import Message, Record


@dataclass(frozen=True)
class Observation:
    """What an environment returns to a turn of the model.

    text: of the next message; None: the dialogue has ended, and this turn is its answer.
    malformed: whether the turn was a call that the environment could not read.
    failed: whether a call that it could read has no value: the tool raised an error, or reached a limit.
    """

    text: str | None
    malformed: bool = False
    failed: bool = False


END = Observation(None)


@runtime_checkable
class Environment(Protocol):
    """The partner in one dialogue; a config names it with `_partial_: true`, so that each dialogue has one of its own.

    Text that a model has generated is evaluated in `kd.sandbox` alone. The same turns have the same observations, for a
    run that is resumed generates its last steps again.
    """

    @abstractmethod
    def reset(self, record: Record) -> tuple[Message, ...]:
        """The messages that open a dialogue on the record, which student and teacher read; always the same ones."""

    @abstractmethod
    def step(self, text: str) -> Observation:
        """The observation that follows a turn. Called from several threads, once at a time for each dialogue."""
