"""Micro-batches that a teacher elsewhere reads while the student learns from those before."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any

from kd.generators.account import Spent, charge, metered
from kd.teachers.target_store import keys_of
from kd.types import Batch

Read = Callable[[Batch], Any]


class Ahead:
    """The micro-batches of a step, which threads of this process have read elsewhere in their order.

    Args:
        threads: micro-batches that are read at a time.
        held: micro-batches that are read and not used yet, at most; None: all of a step.
    """

    def __init__(self, *, threads: int = 1, held: int | None = None):
        self.threads, self.held, self.step = threads, held, _Step([], 0)
        self._waited = [0.0, 0.0]  # seconds, micro-batches

    def expect(self, batches: Sequence[Batch], read: Read) -> None:
        """Begin to read the micro-batches of a step; what is left of the step before is forgotten. An error is raised
        where the outputs that it left out are needed."""
        self.step.close()
        self.step = _Step(batches, len(batches) if self.held is None else self.held)
        for _ in range(min(self.threads, len(batches))):
            Thread(target=self.step.work, args=(read,), name="teacher", daemon=True).start()

    def awaited(self, batch: Batch, read: Read) -> Any:
        """What `read` returned for a micro-batch that was begun, once it is there, or returns now; charges its cost."""
        started = time.perf_counter()
        begun = self.step.taken(batch, self.held)
        if begun is None:
            found = read(batch)
        else:
            found, spent = begun.result()
            charge(spent)
        self._waited = [self._waited[0] + time.perf_counter() - started, self._waited[1] + 1]
        return found

    def take_report(self) -> dict[str, tuple[float, float]]:
        """`teacher_wait`, the seconds that a micro-batch waited since the last call; see `kd.types.Reports`."""
        (seconds, batches), self._waited = self._waited, [0.0, 0.0]
        return {"teacher_wait": (seconds, batches)}


class _Step:
    """The micro-batches of one step; `allowed`: the number of those that may be read already."""

    def __init__(self, batches: Sequence[Batch], allowed: int):
        self.allowed, self.changed = allowed, Condition()
        self.error: BaseException | None = None
        self.waiting = deque((i, batch, Future[tuple[Any, Spent]]()) for i, batch in enumerate(batches))
        self.expected = defaultdict[tuple[bytes, ...], deque[Any]](deque)  # by the content of a micro-batch
        for i, batch, future in self.waiting:
            self.expected[tuple(keys_of(batch.teacher))].append((i, future))

    def taken(self, batch: Batch, held: int | None) -> Future[tuple[Any, Spent]] | None:
        """The output of a micro-batch, which is then taken; None where it was not expected."""
        found = self.expected.get(tuple(keys_of(batch.teacher))) if self.expected else None
        if not found:
            return None
        place, future = found.popleft()
        with self.changed:
            self.allowed = max(self.allowed, place + 1 + (held or 0))
            self.changed.notify_all()
        return future

    def work(self, read: Read) -> None:
        """Read micro-batches until none is left."""
        while (next_one := self._next()) is not None:
            _, batch, future = next_one
            try:
                if self.error is not None:
                    raise self.error
                with metered() as meter:  # no other is open in this thread
                    found = read(batch)
                future.set_result((found, meter.spent))
            except BaseException as error:  # raised where the output is needed
                self.error = error
                future.set_exception(error)
            del next_one, batch, future  # which would hold the output until the next one is there

    def close(self) -> None:
        """Have the threads end after what they read."""
        with self.changed:
            self.waiting.clear()
            self.changed.notify_all()

    def _next(self) -> tuple[int, Batch, Future[tuple[Any, Spent]]] | None:
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting or self.waiting[0][0] < self.allowed)
            return self.waiting.popleft() if self.waiting else None
