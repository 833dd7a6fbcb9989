"""Windows: which records an optimizer step learns from.

A *window* covers one optimizer step over all ranks. Which records it holds is a pure function of (seed, step): the
order needs no saved state and is the same for any number of workers. On each rank its sequences are sorted by length
and cut into micro-batches of bounded size, so that little is padded.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.seeding import derive
from kd.sequences import Encoder
from kd.types import Batch, Record


class Window:
    """One rank's share of one optimizer step, or a validation batch.

    No dataclass: Lightning looks into those to convert what they hold, and is stopped by the frozen records.
    """

    def __init__(self, step: int, batches: list[Batch]):
        self.step, self.batches = step, batches

    @property
    def records(self) -> tuple[Record, ...]:
        """Of all batches."""
        return tuple(record for batch in self.batches for record in batch.records)


class Windows(Dataset[Window]):
    """Window number `step` of an endless shuffled stream of records, one rank's share of it.

    Every record is seen once before any is seen again. The window is dealt to the ranks by length, so that all
    have about as much to do.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encoder: Encoder,
        *,
        size: int,
        seed: int,
        steps: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.records = [record for record in records if encoder.encode(record)]
        if not self.records:
            raise ValueError(
                f"no record of {len(records)} fits data.max_length={encoder.max_length}; raise data.max_length"
            )
        if size < ranks:
            raise ValueError(f"optim.window={size} is smaller than the {ranks} ranks; give each at least one record")
        self.encoder, self.size, self.seed, self.steps, self.rank, self.ranks = encoder, size, seed, steps, rank, ranks

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Window:
        return Window(step, self.encoder.batches([self.records[i] for i in self._share(step)]))

    def indices(self, step: int) -> list[int]:
        """Which records the window holds, over all ranks."""
        n = len(self.records)
        positions = range(step * self.size, (step + 1) * self.size)
        return [_permutation(self.seed, position // n, n)[position % n] for position in positions]

    def _share(self, step: int) -> list[int]:
        if self.ranks == 1:
            return self.indices(step)
        by_length = sorted(self.indices(step), key=lambda i: (-self._length(i), i))
        return by_length[self.rank :: self.ranks]

    def _length(self, i: int) -> int:
        return max(len(row.ids) for row in self.encoder.encode(self.records[i]) or ())


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(n, generator=generator).tolist()


class FromStep(Sampler[int]):
    """Steps `start` to `total`. Its length is the whole run's: a resumed Lightning loop counts from the beginning."""

    def __init__(self, start: int, total: int):
        self.start, self.total = start, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class Data(lightning.LightningDataModule):
    """Training windows and validation batches for a `Trainer`."""

    trainer: Any

    def __init__(
        self,
        train: Sequence[Record],
        validation: Sequence[Record],
        encoder: Encoder,
        *,
        window: int,
        steps: int,
        seed: int,
        workers: int = 0,
    ):
        super().__init__()
        self.train, self.validation, self.encoder = train, validation, encoder
        self.window, self.steps, self.seed, self.workers = window, steps, seed, workers

    def train_dataloader(self) -> DataLoader:
        """Windows from the step on at which the module stands."""
        windows = Windows(
            self.train,
            self.encoder,
            size=self.window,
            seed=self.seed,
            steps=self.steps,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        start = self.trainer.lightning_module.step_count
        return DataLoader(
            windows, batch_size=None, sampler=FromStep(start, self.steps), num_workers=self.workers, **self._workers()
        )

    def order_digest(self) -> str:
        """Which tokens meet which step, as a hash: jobs whose digests agree saw the same data in the same order."""
        windows = Windows(self.train, self.encoder, size=self.window, seed=self.seed, steps=self.steps)
        rows = [[row.ids for row in self.encoder.encode(record) or ()] for record in windows.records]
        order = [rows, [windows.indices(step) for step in range(self.steps)]]
        return hashlib.sha256(json.dumps(order).encode()).hexdigest()

    def met(self) -> list[Record]:
        """The records that the run's steps learn from, in the order in which they are first met."""
        windows = Windows(self.train, self.encoder, size=self.window, seed=self.seed, steps=self.steps)
        seen = dict.fromkeys(i for step in range(self.steps) for i in windows.indices(step))
        return [windows.records[i] for i in seen]

    def val_dataloader(self) -> DataLoader:
        """This rank's micro-batches of the validation records."""
        fitting, ranks = [r for r in self.validation if self.encoder.encode(r)], self.trainer.world_size
        if 0 < len(fitting) < ranks:
            raise ValueError(
                f"{len(fitting)} validation records cannot be dealt to {ranks} ranks; raise checkpoint.records"
            )
        batches = self.encoder.batches(fitting[self.trainer.global_rank :: ranks])
        return DataLoader([Window(0, [batch]) for batch in batches], batch_size=None)  # type: ignore[arg-type]

    def _workers(self) -> dict[str, Any]:
        apart = {"persistent_workers": True, "prefetch_factor": 2, "worker_init_fn": _in_own_group}
        return apart if self.workers else {}


def _in_own_group(_: int) -> None:
    """Out of reach of Ctrl-C, which a terminal sends to the whole group: the last window still needs its workers."""
    os.setpgrp()
