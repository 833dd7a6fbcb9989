"""Copies of this process's models in workers: by the files that they were loaded from, or with the weights of now."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_model, save_model
from torch import nn

from kd.artifacts import cache_root, once, remove, verified
from kd.generators.account import Spent
from kd.workers import T, Workers


class Copied(NamedTuple):
    """A model as workers load it.

    role: of the model in the run, under which they load it.
    weights: the file of those that it has now; None: those that it is loaded with.
    """

    role: str
    weights: Path | None = None

    def __str__(self) -> str:
        return self.role

    def loaded(self, load: Callable[[str], nn.Module]) -> Any:
        """The model of its role, with these weights."""
        model = load(self.role)
        if self.weights is not None:
            verified(self.weights)
            load_model(model, self.weights)
        return model


class Copies:
    """Workers that do tasks with the models that this process holds.

    Args:
        workers: load models that are given as `Copied`.
        roles: by the identity of their content, the models that are as their own files have them; the weights of any
            other, the student's after training, are kept in KD_CACHE until `close`.
    """

    def __init__(self, workers: Workers, close: Callable[[], None], roles: Mapping[str, str]):
        self.workers, self._close, self.roles = workers, close, dict(roles)
        self.written: set[Path] = set()

    def answered(self, model: nn.Module, named: str, tasks: Sequence[T]) -> Iterator[tuple[T, Any, Spent]]:
        """Each task with its result and cost (`kd.workers.Workers`). named: the model's identity."""
        return self.workers.answered(self._copied(model, named), named, tasks)

    def close(self) -> None:
        """End the processes, and remove the weights that were written for them."""
        self._close()
        for path in self.written:
            remove(path)
        self.written.clear()

    def _copied(self, model: nn.Module, named: str) -> Copied:
        if (role := self.roles.get(named)) is not None:
            return Copied(role)
        path = cache_root() / "evaluation" / "weights" / f"{named}.safetensors"
        once(path, lambda partial: save_model(model, str(partial)), kind="copy of weights")
        self.written.add(path)
        return Copied("student", path)
