"""Actors of a Ray cluster that answer the prompts of stages (extra `ray`), by Ray's public `ray.util.ActorPool`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat

from kd.augmentation.answering import Part, Workers
from kd.generators.account import Spent
from kd.ray_cluster import check_installed, connected, is_connected
from kd.teachers.interface import Answers, Teacher
from kd.types import Source

AGAIN = 3  # times that an actor which was lost is started again, and a part that it had is answered again
PASSED_ON = ("KD_", "HF_")  # the beginnings of variables that actors on a running cluster get from this process


@dataclass(frozen=True)
class RaySettings:
    """The section `run.ray` of the config.

    Args:
        actors: their number; 0: there are none.
        cluster: its address, `auto` for the one of this machine; None: one is started here.
        num_cpus: cores that an actor takes; None: one for each thread of this process's torch, or one beside a GPU.
        num_gpus: GPUs that an actor takes, or the share of one; None: one where the run has a GPU.
    """

    actors: Annotated[int, Field(ge=0, le=10_000)] = 0
    cluster: str | None = None
    num_cpus: NonNegativeFloat | None = None
    num_gpus: NonNegativeFloat | None = None


class Actor:
    """Answers parts with one model at a time, which it loads when the first part needs it.

    Args:
        load: gives the model of a name, on the actor's device.
        threads: of torch, as in the process that started it: sums in another order would round differently.
    """

    def __init__(self, load: Callable[[Source], Teacher], threads: int):
        torch.set_num_threads(threads)
        self.load = load
        self.model: Teacher | None = None
        self.named: str | None = None

    def answered(
        self, source: Source, named: str, number: int, part: Part
    ) -> tuple[int, Sequence[Answers], dict[str, Any]]:
        """The part's number and answers, and their cost. Raises ValueError where the model is another than `named`."""
        if self.named != named:
            self.model = self.named = None  # its memory is free before the other is loaded
            self.model = self.load(source)
            if (found := _named(source, self.model)) != named:
                self.model = None
                raise ValueError(
                    f"run.ray: an actor has loaded a {source} of other content ({found[:28]}…) than this process "
                    f"({named[:28]}…); give all machines the same KD_CACHE, files and packages, or set run.ray.actors=0"
                )
            self.named = named
        assert self.model is not None
        rows, spent = part.answered(self.model)
        return number, rows, spent._asdict()


def _named(source: Source, model: Teacher) -> str:
    """The name of a model's content, as `kd.augmentation.Resources` gives it to a writer."""
    return f"student {model.identity()}" if source == "student" else model.identity()


class RayWorkers(Workers):
    """A pool of actors for all calls of all stages: started when a first part is to be answered, ended by `close`.

    Args:
        load: as of `Actor`; it is sent to the actors.
        settings: `num_gpus` is a number.

    Raises ValueError where Ray is not installed.
    """

    def __init__(self, load: Callable[[Source], Teacher], settings: RaySettings):
        check_installed(f"run.ray.actors={settings.actors}")
        self.load, self.actors, self.cluster = load, settings.actors, settings.cluster
        gpus = settings.num_gpus or 0
        cores = 1 if gpus else torch.get_num_threads()
        self.takes = {"num_cpus": cores if settings.num_cpus is None else settings.num_cpus, "num_gpus": gpus}
        self.ray: Any = None
        self.pool: Any = None
        self.handles: list[Any] = []
        self.is_own = False  # whether the cluster was started here

    def answered(
        self, source: Source, named: str, parts: Sequence[Part]
    ) -> Iterator[tuple[Part, Sequence[Answers], Spent]]:
        """See `Workers`. An actor that is lost is started again; what others have answered is not affected.

        Raises an error of an actor as it was there, and ConnectionError for an actor that was lost too often (AGAIN).
        """
        if self.pool is None:
            self._start()
        exceptions = self.ray.exceptions
        tasks = [(source, named, number, part) for number, part in enumerate(parts)]
        try:
            for number, rows, cost in self.pool.map_unordered(_sent, tasks):
                yield parts[number], rows, Spent(**cost)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayActorError as error:
            raise ConnectionError(
                f"run.ray: an actor ended and was not replaced ({_last_line(error)}); what was answered is kept: if "
                "memory was short, let fewer share a machine (run.ray.num_cpus, run.ray.num_gpus), and start it again"
            ) from None

    def close(self) -> None:
        """End the actors, and the cluster that was started for them."""
        for handle in self.handles:
            self.ray.kill(handle)
        self.handles, self.pool = [], None
        if self.is_own:
            self.ray.shutdown()
            self.is_own = False

    def _start(self) -> None:
        self.is_own = not is_connected()
        self.ray = connected(self.cluster, "run.ray.cluster")
        if self.is_own and self.cluster is None:
            self._check_resources(self.ray.cluster_resources())
        options: dict[str, Any] = {**self.takes, "max_restarts": AGAIN, "max_task_retries": AGAIN}
        if self.cluster is not None or not self.is_own:
            options["runtime_env"] = {"env_vars": _variables(os.environ)}
        remote = self.ray.remote(Actor).options(**options)
        self.handles = [remote.remote(self.load, torch.get_num_threads()) for _ in range(self.actors)]
        self.pool = import_module("ray.util").ActorPool(self.handles)

    def _check_resources(self, there: Mapping[str, float]) -> None:
        """Raises ValueError for what a cluster of this machine alone can never give."""
        for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            if (needed := self.actors * self.takes[key]) > there.get(name, 0):
                self.close()
                raise ValueError(
                    f"run.ray.actors={self.actors} take {needed:g} {name}s, and this machine has "
                    f"{there.get(name, 0):g}; lower run.ray.actors or run.ray.{key}, or give run.ray.cluster"
                )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _sent(actor: Any, task: tuple[Source, str, int, Part]) -> Any:
    return actor.answered.remote(*task)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that an actor of a cluster which runs already needs, with its path of imports."""
    found = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    return {**found, "PYTHONPATH": os.pathsep.join([os.getcwd(), *environment.get("PYTHONPATH", "").split(os.pathsep)])}
