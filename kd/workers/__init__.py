"""Work that other processes do with copies of this process's models: the same results at the same cost."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from kd.generators.account import Spent


@runtime_checkable
class Task(Protocol):
    """What a process computes with a model, the same in every process; it is sent to it."""

    def answered(self, model: Any) -> tuple[Any, Spent]:
        """The result and its cost."""


T = TypeVar("T", bound=Task)


@runtime_checkable
class Workers(Protocol):
    """Processes that do tasks side by side, each with a copy of the model."""

    def answered(self, source: Hashable, named: str, parts: Sequence[T]) -> Iterator[tuple[T, Any, Spent]]:
        """Each task with its result and its cost, as soon as it is done, in any order.

        Args:
            source: the model, as the processes load it.
            named: the name of the model's content. Raises ValueError where a process has another.
        """
