"""Windows: the records that an optimizer step learns from.

A *window* covers one optimizer step over all ranks. Its records are a pure function of (seed, step): the order
needs no saved state and is the same for any number of workers. On each rank its sequences are sorted by length
and cut into micro-batches of bounded size, so that little is padded.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import lightning
from torch.utils.data import DataLoader

from kd.data.blocks import Blocks
from kd.data.images import seen
from kd.data.references import references, with_reference
from kd.data.sequences import Encoder
from kd.seeding import permutation
from kd.types import Batch, Idle, Record

AHEAD = 2  # windows that are made in advance, per worker


def nothing_fits(count: int, max_length: int) -> str:
    """The error message for training records of which none can be learnt from."""
    if count == 0:
        return "there are no training records; raise the skill's number of them (skill.train)"
    return f"no record of {count} fits data.max_length={max_length}; raise data.max_length"


class Window:
    """One rank's share of one optimizer step, or a validation batch. `plain` is text of a corpus, the stream "lm";
    `coming` are the batches of the steps after it, for a rollout that generates in advance (`Rollout.ahead`).

    It is no dataclass, because Lightning would try to convert the fields of one, and fail on the frozen records.
    """

    def __init__(
        self,
        step: int,
        batches: list[Batch],
        plain: list[Batch] | None = None,
        coming: Sequence[list[Batch]] = (),
    ):
        self.step, self.batches, self.plain, self.coming = step, batches, plain or [], list(coming)

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all batches."""
        return tuple(record for batch in self.batches for record in batch.records)


class Windows:
    """Window number `step` of an endless shuffled stream of records, one rank's share of it.

    Every record is seen once before any is seen again. The window is dealt to the ranks by length, so that all
    have about as much to do.

    uses: steps in a row that get the same records, for a rollout that learns several times on what was written once.
    plain: the stream of plain text, `kd.data.blocks.Blocks`; it moves on at every step.
    ahead: the number of steps after each whose batches come with it, up to the last step.
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
        uses: int = 1,
        plain: Blocks | None = None,
        ahead: int = 0,
    ):
        self.records = [record for record in records if encoder.encode(record)]
        if records and not with_reference(records):
            raise ValueError(
                f"none of {len(records)} training records has a response; give each one, or take augmentation=labeling"
            )
        if not self.records:
            raise ValueError(nothing_fits(len(records), encoder.max_length))
        if size < ranks:
            raise ValueError(f"optim.window={size} is smaller than the {ranks} ranks; give each at least one record")
        self.encoder, self.size, self.seed, self.steps, self.rank, self.ranks = encoder, size, seed, steps, rank, ranks
        self.uses, self.plain, self.ahead = uses, plain, ahead

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Window:
        plain = [] if self.plain is None else self.plain.at(step, self.rank, self.ranks)
        coming = range(step + 1, min(step + 1 + self.ahead, self.steps))
        return Window(step, self.batches(step), plain, [self.batches(later) for later in coming])

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step's records."""
        return self.encoder.batches([self.records[i] for i in self._share(step)])

    def indices(self, step: int) -> list[int]:
        """Indices of the window's records, over all ranks."""
        n, window = len(self.records), step // self.uses
        positions = range(window * self.size, (window + 1) * self.size)
        return [permutation(n, self.seed, "order", position // n)[position % n] for position in positions]

    def _share(self, step: int) -> list[int]:
        if self.ranks == 1:
            return self.indices(step)
        by_length = sorted(self.indices(step), key=lambda i: (-self._length(i), i))
        return by_length[self.rank :: self.ranks]

    def _length(self, i: int) -> int:
        return max(len(row.ids) for row in self.encoder.encode(self.records[i]) or ())


class Ahead:
    """Windows from step `start` on, in order, made in advance by `workers` threads, or on demand for 0 workers.

    Threads, since processes would be forked from one in which others run (gloo's, CUDA's), which at times hangs, and
    would outlive a rank that is killed. Its length is the whole run's: a resumed Lightning loop counts from the
    beginning.
    """

    def __init__(self, windows: Windows, start: int, workers: int):
        self.windows, self.start, self.workers = windows, start, workers

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Window]:
        steps = range(self.start, len(self.windows))
        if not self.workers:
            yield from map(self.windows.__getitem__, steps)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="windows")
        made: deque[Future[Window]] = deque()
        try:
            for step in steps:
                made.append(pool.submit(self.windows.__getitem__, step))
                if len(made) > AHEAD * self.workers:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Data(lightning.LightningDataModule):
    """Training windows and validation batches for a `Trainer`.

    every_turn: whether the windows' earlier answers are learnt, too; validation is on the last one alone.
    left_out: number of training records that are not in `train`, since their prompts leave no room for a response.
    even: whether all ranks have as many validation batches, the last ones `Idle` where one has fewer.
    """

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
        uses: int = 1,
        plain: Blocks | None = None,
        every_turn: bool = False,
        left_out: int = 0,
        even: bool = False,
        ahead: int = 0,
    ):
        super().__init__()
        self.every_turn, self.left_out, self.even = every_turn, left_out, even
        self.train, self.validation, self.encoder = train, validation, encoder
        self.window, self.steps, self.seed, self.workers = window, steps, seed, workers
        self.uses, self.plain, self.ahead = uses, plain, ahead

    def windows(self, rank: int = 0, ranks: int = 1) -> Windows:
        """A rank's share of every step."""
        return Windows(
            self.train,
            self.encoder.of_every_turn() if self.every_turn else self.encoder,
            size=self.window,
            seed=self.seed,
            steps=self.steps,
            rank=rank,
            ranks=ranks,
            uses=self.uses,
            plain=self.plain,
            ahead=self.ahead,
        )

    def train_dataloader(self) -> Ahead:
        """Windows from the module's current step on."""
        windows = self.windows(self.trainer.global_rank, self.trainer.world_size)
        return Ahead(windows, self.trainer.lightning_module.step_count, self.workers)

    @cached_property
    def _whole(self) -> Windows:
        """The windows of all ranks together; of training records, which it encodes when it is made."""
        return self.windows()

    def order_digest(self) -> str:
        """A hash of each step's records, as tokens and images: jobs with the same hash saw the same in the same order.

        Plain text, which some terms learn on besides, is not in it.
        """
        windows = self._whole
        encoded = [windows.encoder.encode(record) or () for record in windows.records]
        rows = [[[row.ids, *seen(row.view)] if row.view else row.ids for row in group] for group in encoded]
        order = [rows, [windows.indices(step) for step in range(self.steps)]]
        return hashlib.sha256(json.dumps(order).encode()).hexdigest()

    def met(self) -> list[Record]:
        """The records that the run's steps learn from, in the order of their first use; none where no record fits."""
        if not any(map(self.encoder.encode, self.train)):
            return []
        windows = self._whole
        seen = dict.fromkeys(i for step in range(self.steps) for i in windows.indices(step))
        return [windows.records[i] for i in seen]

    @cached_property
    def references(self) -> list[Record]:
        """The validation records that are scored. Raises ValueError as `kd.data.references`."""
        return references(self.encoder, self.validation)

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of each split's records, and of those that `data.max_length` leaves out or truncates."""
        windows = self._whole
        rows = [windows.encoder.encode(record) or () for record in windows.records]
        truncated = sum(any(row.truncated or (row.teacher or row).truncated for row in group) for group in rows)
        given, validation = len(self.train) + self.left_out, with_reference(self.validation)
        return {
            "train": {"given": given, "left_out": given - len(windows.records), "truncated": truncated},
            "validation": {"given": validation, "left_out": validation - len(self.references)},
        }

    def val_dataloader(self) -> DataLoader:
        """This rank's micro-batches of the validation records that are scored."""
        ranks = self.trainer.world_size
        if 0 < len(self.references) < ranks:
            raise ValueError(
                f"{len(self.references)} validation records cannot be dealt to {ranks} ranks; raise checkpoint.records"
            )
        shares = [self.encoder.batches(self.references[rank::ranks]) for rank in range(ranks if self.even else 0)]
        batches = self.encoder.batches(self.references[self.trainer.global_rank :: ranks])
        spare = max(map(len, shares), default=0) - len(batches)
        batches += [Idle(**vars(batches[-1]))] * spare
        return DataLoader([Window(0, [batch]) for batch in batches], batch_size=None)  # type: ignore[arg-type]
