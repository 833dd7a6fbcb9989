"""The kept part of a teacher's output, row by row: K ids, a random sample of ids, or its last hidden states.

*Columns* are named tensors whose first axis runs over the rows, or over all held ids of all rows; they are what a
cache stores, and `read` turns them into the logits that a term is evaluated on.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import HeadLogits, Logits
from kd.kernels.sparse import EMPTY, Rule, SparseLogits, TailRule
from kd.types import Head

Columns = Mapping[str, Tensor]
StoredType = Literal["float32", "float16", "bfloat16"]
Draws = Annotated[int, Field(ge=1, le=65535)]


@runtime_checkable
class Targets(Protocol):
    """A choice of the part of a teacher's output that is kept."""

    rule: Rule | None  # None: nothing is lost
    temperature: float
    dtype: StoredType

    def columns(self, logits: Logits, generator: Generator | None = None) -> dict[str, Tensor]:
        """The kept columns of every row."""

    def read(self, columns: Columns, size: int, head: Head | None = None) -> SparseLogits | Logits:
        """Columns as logits over `size` ids."""


class TopK:
    """The K most probable ids of each row, exactly, and the mass of all others.

    Args:
        k: ids of each row; all, if the vocabulary has no more.
        tail: see `kd.kernels.sparse`.
        temperature: of the distribution that is kept; that of the terms.
        dtype: of cached log-probabilities.
    """

    def __init__(
        self,
        *,
        k: PositiveInt,
        tail: TailRule = "tail_bucket",
        temperature: PositiveFloat = 1.0,
        dtype: StoredType = "float16",
    ):
        self.k, self.rule, self.temperature, self.dtype = k, tail, temperature, dtype

    @torch.no_grad()
    def columns(self, logits: Logits, generator: Generator | None = None) -> dict[str, Tensor]:
        """ids and logprobs `[n K]`, most probable first; tail `[n]`."""
        k = min(self.k, logits.size)
        kept: dict[str, list[Tensor]] = {"ids": [], "logprobs": [], "tail": []}
        for rows in slices(logits.n, CHUNK):
            logprobs = _logprobs(logits, rows, self.temperature)
            top = logprobs.topk(k, dim=-1)
            _append(kept, ids=top.indices, logprobs=top.values, tail=_tail(logprobs, top.indices))
        return {name: torch.cat(parts) for name, parts in kept.items()} if logits.n else _no_rows(k)

    def read(self, columns: Columns, size: int, head: Head | None = None) -> SparseLogits:
        """The rows that `columns` made, possibly rounded for storage."""
        ids, wide = columns["ids"].long(), {name: _wide(columns[name]) for name in ("logprobs", "tail")}
        ids = ids.masked_fill((ids < 0) | (ids >= size), EMPTY)  # in two bytes without a sign it is 65535
        return SparseLogits(ids, wide["logprobs"], wide["tail"], size, self.rule, self.temperature)


class Sampled:
    """Ids drawn at random from the teacher, in place of its distribution: random-sampling KD (arXiv 2503.16870).

    N draws from the proposal p^t / sum p^t; an id drawn c times has weight c / N times p over its proposal. So the
    weights' expectation is p for every t, and forward KL against them is unbiased in value and gradient.

    Args:
        draws: N. The paper takes 50, which holds about 12 ids.
        proposal: t. Above 0; 1 draws from the teacher itself, less looks further into the tail.
        temperature: of the distribution that is sampled; that of the terms.
        dtype: of cached log-probabilities and weights.
    """

    rule: Rule = "sampled"

    def __init__(
        self,
        *,
        draws: Draws = 50,
        proposal: PositiveFloat = 1.0,
        temperature: PositiveFloat = 1.0,
        dtype: StoredType = "float16",
    ):
        self.draws, self.proposal, self.temperature, self.dtype = draws, proposal, temperature, dtype

    @torch.no_grad()
    def columns(self, logits: Logits, generator: Generator | None = None) -> dict[str, Tensor]:
        """held and tail `[n]`; ids, logprobs and weights of all held ids of all rows, one after the other."""
        kept: dict[str, list[Tensor]] = {name: [] for name in ("held", "ids", "logprobs", "weights", "tail")}
        for rows in slices(logits.n, CHUNK):
            logprobs = _logprobs(logits, rows, self.temperature)
            proposal = (logprobs * self.proposal).log_softmax(-1)
            drawn = proposal.exp().multinomial(self.draws, replacement=True, generator=generator)
            _append(kept, **held_of(drawn, logprobs, proposal))
        return {name: torch.cat(parts) for name, parts in kept.items()} if logits.n else _no_rows(None)

    def read(self, columns: Columns, size: int, head: Head | None = None) -> SparseLogits:
        """As many columns as the row with the most ids; the others are EMPTY at their end."""
        held = columns["held"].long()
        slots = torch.arange(int(held.max()) if len(held) else 1, device=held.device) < held[:, None]
        ids = torch.full(slots.shape, EMPTY, device=held.device).masked_scatter(slots, columns["ids"].long())
        values, weights = (
            torch.zeros(slots.shape, dtype=wide.dtype, device=held.device).masked_scatter(slots, wide)
            for wide in (_wide(columns["logprobs"]), _wide(columns["weights"]))
        )
        return SparseLogits(ids, values, _wide(columns["tail"]), size, self.rule, self.temperature, weights)


class Hidden:
    """The last hidden states, and once the head: nothing is lost, and every divergence has its full meaning.

    Smaller than K ids where the teacher is narrow: D numbers a row.

    Args:
        dtype: of cached states and head.
    """

    rule: Rule | None = None
    temperature = 1.0

    def __init__(self, *, dtype: StoredType = "float32"):
        self.dtype = dtype

    def columns(self, logits: Logits, generator: Generator | None = None) -> dict[str, Tensor]:
        """hidden `[n D]`. Raises ValueError for logits that are not hidden states times a head."""
        if not isinstance(logits, HeadLogits):
            raise ValueError(f"targets=hidden needs a teacher with one head, not {type(logits).__name__}; take topk")
        return {"hidden": logits.hidden}

    def read(self, columns: Columns, size: int, head: Head | None = None) -> HeadLogits:
        """The logits of the states under the head that was stored with them."""
        assert head is not None
        return HeadLogits(columns["hidden"].to(head.weight.dtype), head)


class HeldMass:
    """The mean mass that rows hold, summed on their device, so that no step waits for it before it is logged."""

    def __init__(self) -> None:
        self.mass: Tensor | float = 0.0
        self.rows = 0

    def add(self, kept: SparseLogits) -> None:
        """Adds these rows."""
        self.mass, self.rows = self.mass + kept.mass().double().sum(), self.rows + kept.n

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The mean as `teacher_mass`, and resets the sum; see `kd.types.Reports`."""
        mean = float(self.mass), float(self.rows)
        self.mass, self.rows = 0.0, 0
        return {"teacher_mass": mean}


def held_of(drawn: Tensor, logprobs: Float[Tensor, "c V"], proposal: Float[Tensor, "c V"]) -> dict[str, Tensor]:
    """The columns of `Sampled`, for `drawn` `[c N]` from exp(`proposal`)."""
    drawn = drawn.sort(-1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    times = torch.zeros_like(drawn).scatter_add_(1, first.cumsum(1) - 1, torch.ones_like(drawn))
    held = first.sum(1)
    row = torch.arange(len(drawn), device=drawn.device).repeat_interleave(held)
    ids = drawn[first]
    p = logprobs[row, ids]
    weights = (times[times > 0].to(p.dtype) / drawn.shape[1]) * (p - proposal[row, ids]).exp()
    return {"held": held, "ids": ids, "logprobs": p, "weights": weights, "tail": _tail(logprobs, drawn)}


def stored(columns: Columns, dtype: StoredType, size: int) -> dict[str, Tensor]:
    """The columns in the types of the disk: ids in two bytes where they fit."""
    small = {"ids": torch.uint16 if size < 1 << 16 else torch.int32, "held": torch.uint16}
    return {name: column.to(small.get(name, getattr(torch, dtype))).cpu() for name, column in columns.items()}


def _logprobs(logits: Logits, rows: slice, temperature: float) -> Float[Tensor, "c V"]:
    made = logits.rows(rows)
    wide = made.to(torch.promote_types(made.dtype, torch.float32))
    return (wide / temperature).log_softmax(-1)


def _tail(logprobs: Float[Tensor, "c V"], ids: Tensor) -> Float[Tensor, " c"]:
    return logprobs.scatter(1, ids, -torch.inf).logsumexp(1)


def _append(kept: dict[str, list[Tensor]], **columns: Tensor) -> None:
    for name, column in columns.items():
        kept[name].append(column)


def _wide(column: Tensor) -> Tensor:
    return column.to(torch.promote_types(column.dtype, torch.float32))


def _no_rows(k: int | None) -> dict[str, Tensor]:
    """The columns of a batch without loss rows."""
    if k is not None:
        return {"ids": torch.zeros(0, k, dtype=torch.long), "logprobs": torch.zeros(0, k), "tail": torch.zeros(0)}
    integers = {name: torch.zeros(0, dtype=torch.long) for name in ("held", "ids")}
    return integers | {name: torch.zeros(0) for name in ("logprobs", "weights", "tail")}
