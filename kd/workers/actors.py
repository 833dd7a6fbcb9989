"""Actors of a Ray cluster that do tasks with copies of models (extra `ray`), by Ray's public `ray.util.ActorPool`."""

import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import floor
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat

from kd.generators.account import Spent
from kd.models.digests import Identified
from kd.progress import remark
from kd.ray_cluster import check_installed, connected, is_connected
from kd.secrets import SECRET
from kd.workers import T, Task, Workers

AGAIN = 3  # times that an actor which was lost is started again, and a part that it had is answered again
PASSED_ON = ("KD_", "HF_")  # the beginnings of variables that actors on a running cluster get from this process
IMPORTED = frozenset({"HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"})  # a path, a switch: read before any actor is
ROUNDING = 1e-6  # of shares
EVERY = 60.0  # seconds between two remarks on actors that wait for a place


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
    """Does tasks with one model at a time, which it loads when the first of them needs it.

    Args:
        load: gives a model, as its caller names it, on the actor's device.
        threads: of torch, as in the process that started it: sums in another order would round differently.
        secrets: variables that Ray must not log, as it does those of a `runtime_env`.
    """

    def __init__(self, load: Callable[[Any], Identified], threads: int, secrets: Mapping[str, str] | None = None):
        os.environ.update(secrets or {})
        torch.set_num_threads(threads)
        self.load = load
        self.model: Identified | None = None
        self.named: str | None = None

    def ready(self) -> None:
        """Ends once the actor has its place on a machine."""

    def answered(self, source: Hashable, named: str, number: int, part: Task) -> tuple[int, Any, dict[str, Any]]:
        """The task's number and result, and its cost. Raises ValueError where the model is another than `named`."""
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


def _named(source: Hashable, model: Identified) -> str:
    """The name of a model's content, as `kd.augmentation.Resources` gives it to a writer."""
    return f"student {model.identity()}" if source == "student" else model.identity()


class RayWorkers(Workers):
    """A pool of actors for many calls: started when a first task is to be done, ended by `close`.

    Args:
        load: as of `Actor`; it is sent to the actors.
        settings: `num_gpus` is a number.

    Raises ValueError where Ray is not installed.
    """

    def __init__(self, load: Callable[[Any], Identified], settings: RaySettings):
        check_installed(f"run.ray.actors={settings.actors}")
        self.load, self.actors, self.cluster = load, settings.actors, settings.cluster
        gpus = settings.num_gpus or 0
        cores = 1 if gpus else torch.get_num_threads()
        self.takes = {"num_cpus": cores if settings.num_cpus is None else settings.num_cpus, "num_gpus": gpus}
        self.ray: Any = None
        self.pool: Any = None
        self.handles: list[Any] = []
        self.placed: list[Any] = []  # of each actor, what is known once it has its place
        self.is_own = False  # whether the cluster was started here

    def answered(self, source: Hashable, named: str, parts: Sequence[T]) -> Iterator[tuple[T, Any, Spent]]:
        """See `Workers`. An actor that is lost is started again; what others have answered is not affected.

        While actors wait for a place, a remark names them every minute.

        Raises an error of an actor as it was there; ValueError where the cluster has no room for all actors;
        ConnectionError for an actor that was lost too often (AGAIN), or that Ray cannot start or keep.
        """
        if self.pool is None:
            self._start()
        exceptions = self.ray.exceptions
        tasks = [(source, named, number, part) for number, part in enumerate(parts)]
        try:
            for number, rows, cost in self._arriving(tasks):
                yield parts[number], rows, Spent(**cost)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayActorError as error:
            raise ConnectionError(
                f"run.ray: an actor ended and was not replaced ({_last_line(error)}); what was answered is kept: if "
                "memory was short, let fewer share a machine (run.ray.num_cpus, run.ray.num_gpus), and start it again"
            ) from None
        except exceptions.RayError as error:
            raise ConnectionError(
                f"run.ray: Ray reports {type(error).__name__} ({_last_line(error)}); what was answered is kept: mend "
                "the cluster, or take fewer or smaller actors (run.ray.actors, run.ray.num_cpus, run.ray.num_gpus), "
                "and start it again"
            ) from None

    def close(self) -> None:
        """End the actors, and the cluster that was started for them."""
        for handle in self.handles:
            self.ray.kill(handle)
        self.handles, self.placed, self.pool = [], [], None
        if self.is_own:
            self.ray.shutdown()
            self.is_own = False

    def _start(self) -> None:
        own = not is_connected()
        self.ray = connected(self.cluster, "run.ray.cluster")
        self.is_own = own
        self._check_places([node["Resources"] for node in self.ray.nodes() if node["Alive"]])
        options: dict[str, Any] = {**self.takes, "max_restarts": AGAIN, "max_task_retries": AGAIN}
        hidden = dict[str, str]()
        if not self._is_alone:
            shown, hidden = _variables(os.environ)
            options["runtime_env"] = {"env_vars": shown}
        remote = self.ray.remote(Actor).options(**options)
        self.handles = [remote.remote(self.load, torch.get_num_threads(), hidden) for _ in range(self.actors)]
        self.placed = [handle.ready.remote() for handle in self.handles]
        self.pool = import_module("ray.util").ActorPool(self.handles)

    @property
    def _is_alone(self) -> bool:
        """Whether the cluster is this machine, and was started by this process for the actors alone."""
        return self.is_own and self.cluster is None

    def _check_places(self, machines: Sequence[Mapping[str, float]]) -> None:
        """Raises ValueError where the machines, if nothing else ran on them, had no room for all actors."""
        found = sum(_places(machine, self.takes, self.actors) for machine in machines)
        if found >= self.actors:
            return
        there = ", ".join(f"{sum(each.get(name, 0) for each in machines):g} {name}s" for name in ("CPU", "GPU"))
        whose = "this machine" if self._is_alone else f"the cluster (machines: {len(machines)})"
        self.close()
        raise ValueError(
            f"run.ray.actors={self.actors} take {self.takes['num_cpus']:g} CPUs and {self.takes['num_gpus']:g} GPUs "
            f"each, and {whose} has room for {found} ({there}); lower run.ray.actors, run.ray.num_cpus or "
            "run.ray.num_gpus, or give run.ray.cluster, with as many machines as they need"
        )

    def _arriving(self, tasks: Sequence[tuple]) -> Iterator[Any]:
        """The results of tasks as they arrive, with a remark on actors that wait for a place, every minute."""
        self.pool.map_unordered(_sent, tasks)  # after those of an earlier call that ended with an error
        since = time.monotonic()
        while self.pool.has_next():
            arrived = list[Any]()
            try:
                arrived.append(self.pool.get_next_unordered(timeout=max(since + EVERY - time.monotonic(), 0.0)))
            except self.ray.exceptions.RayTaskError:  # also the time-out of a task
                raise
            except TimeoutError:  # nothing has arrived
                pass
            if time.monotonic() >= since + EVERY:
                since = time.monotonic()
                self._name_waiting()
            yield from arrived

    def _name_waiting(self) -> None:
        _, waiting = self.ray.wait(self.placed, num_returns=len(self.placed), timeout=0)
        if waiting:
            numbers = ", ".join(str(i + 1) for i, one in enumerate(self.placed) if one in waiting)
            remark(
                f"run.ray: actors without a place yet: {numbers} of {self.actors}, which take "
                f"{self.takes['num_cpus']:g} CPUs and {self.takes['num_gpus']:g} GPUs each; where others on the "
                "cluster use these, wait for their end, or start it again with a lower run.ray.actors",
                sys.stderr,
            )


def _places(machine: Mapping[str, float], takes: Mapping[str, float], most: int) -> int:
    """The number of actors, `most` at most, that a machine has room for; those that share a GPU are on one GPU each."""
    cores, gpus = takes["num_cpus"], takes["num_gpus"]
    if cores:
        most = min(most, floor(machine.get("CPU", 0) / cores + ROUNDING))
    if gpus:
        there = machine.get("GPU", 0)
        most = min(most, floor(there) * floor(1 / gpus + ROUNDING) if gpus < 1 else floor(there / gpus))
    return most


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _sent(actor: Any, task: tuple[Hashable, str, int, Task]) -> Any:
    return actor.answered.remote(*task)


def _variables(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables of this process that an actor of a cluster which runs already needs, with its path of imports.

    Those that Ray may log, and those with names of secrets (`kd.secrets`).
    """
    found = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    hidden = {name: value for name, value in found.items() if SECRET.search(name) and name not in IMPORTED}
    shown = {name: value for name, value in found.items() if name not in hidden}
    paths = os.pathsep.join([os.getcwd(), *environment.get("PYTHONPATH", "").split(os.pathsep)])
    return {**shown, "PYTHONPATH": paths}, hidden
