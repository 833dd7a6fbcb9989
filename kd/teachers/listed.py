"""A teacher that lists the likeliest ids of each position, from a file or a server, and has no other output."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kd.alignment.token_bytes import END, TokenBytes
from kd.data.sequences import Encoder
from kd.kernels.sparse import EMPTY
from kd.teachers.ahead import Ahead
from kd.teachers.interface import Teacher
from kd.teachers.targets import HeldMass, TopK
from kd.types import Batch, ModelOutput, Record

ROUNDING = 1e-3  # by which a log-probability may be above 0, and probabilities may sum to more than 1
MASS = 1e-2  # by which a stated mass may differ from the sum of the probabilities


class Row(NamedTuple):
    """The listed ids of one position with their log-probabilities in nats; mass: their sum, where it is stated."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    mass: float | None = None


class Listed(nn.Module, Teacher):
    """The rows that a teacher lists, as the logits that `targets` keeps of a whole distribution.

    Args:
        teacher: lists rows (`kd.teachers.interface.Teacher.listed`).
        targets: the number of ids that are kept, and the tail rule.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"text", "logits"})
    exact: ClassVar[None] = None  # the full logits are not available

    def __init__(self, teacher: Teacher, targets: TopK):
        super().__init__()
        self.source, self.targets, self.held_mass = teacher, targets, HeldMass()
        self.ahead = Ahead()

    def identity(self) -> str:
        """The teacher's."""
        return self.source.identity()

    def generate(self, records: Sequence[Record], **settings: Any) -> Any:
        """The teacher's."""
        return self.source.generate(records, **settings)

    @property
    def readings(self) -> int:
        """The teacher's."""
        return self.source.readings

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Of the ids that are listed."""
        return self.source.tokenizer

    @property
    def vocabulary(self) -> int:
        """The number of ids."""
        return self.source.vocabulary

    def columns_of(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The columns of each sequence of a batch, as `TopK` makes them.

        Raises ValueError for a response without rows, or with other tokens.
        """
        masks = batch.teacher.mask.cpu()
        labels = [row[mask].tolist() for row, mask in zip(batch.teacher.labels.cpu(), masks, strict=True)]
        rows = self.source.listed(batch, labels)
        return [columns_of(one, self.targets.k, self.vocabulary) for one in rows]

    def output(self, batch: Batch, wanted: frozenset[str]) -> ModelOutput:
        """See `Teacher`; `logits` are `SparseLogits`."""
        parts, device = self.ahead.awaited(batch, self.columns_of), batch.teacher.tokens.device
        columns = {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
        logits = self.targets.read(columns, self.vocabulary)
        self.held_mass.add(logits)
        return ModelOutput(logits=logits)

    def expect(self, batches: Sequence[Batch]) -> None:
        """See `Teacher`: a server reads one micro-batch after the other."""
        if self.source.reads_elsewhere and not any(batch.teacher.pixels for batch in batches):
            self.ahead.expect(batches, self.columns_of)

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """See `Teacher`."""
        self.source.check(records, read, audited, encoder)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`: `teacher_mass`, and the teacher's own; of a server that reads, `teacher_wait`, the
        seconds that a micro-batch waited for it."""
        wait = self.ahead.take_report() if self.source.reads_elsewhere else {}
        return {**self.held_mass.take_report(), **wait, **self.source.take_report()}


def certain(label: int) -> Row:
    """The row of a position of which no distribution is known: its label alone."""
    return Row((label,), (0.0,))


def columns_of(rows: Sequence[Row], k: int, size: int) -> dict[str, Tensor]:
    """The k likeliest ids of each row, most probable first (EMPTY where it lists fewer), and the log of the other mass.

    Raises ValueError for no id, ids outside of the vocabulary or twice in a row, and for numbers that are no
    log-probabilities or do not fit the stated mass.
    """
    k = min(k, size)
    checked = [_likeliest(row, k, size, f"position {i}") for i, row in enumerate(rows)]
    ids = torch.tensor([row.ids for row in checked], dtype=torch.long).view(-1, k)
    logprobs = torch.tensor([row.logprobs for row in checked]).view(-1, k)
    held = logprobs.double().exp().masked_fill(ids == EMPTY, 0.0).sum(1)
    tail = torch.log1p(-held.clamp(max=1.0)).float()
    return {"ids": ids, "logprobs": logprobs, "tail": tail}


def _likeliest(row: Row, k: int, size: int, where: str) -> Row:
    values = [float(value) for value in row.logprobs]
    if len(row.ids) != len(values) or len({*row.ids}) != len(row.ids):
        raise ValueError(f"{where} lists {len(row.ids)} ids and {len(values)} log-probabilities; list each id once")
    if bad := [i for i in row.ids if not 0 <= i < size]:
        raise ValueError(f"{where} lists the id {bad[0]}, but there are {size}; take the tokenizer of the file's ids")
    if bad_values := [value for value in values if math.isnan(value) or value > ROUNDING]:
        raise ValueError(f"{where} has {bad_values[0]} for a log-probability; give natural logarithms, at most 0")
    mass = sum(map(math.exp, values))
    if mass > 1 + ROUNDING or (row.mass is not None and abs(row.mass - mass) > MASS):
        stated = "" if row.mass is None else f", with a stated mass of {row.mass:.4g}"
        raise ValueError(f"{where} has probabilities that sum to {mass:.4g}{stated}; give natural logarithms")
    order = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    if not order:
        raise ValueError(f"{where} lists no id; list at least that of the response")
    none = k - len(order)
    return Row(
        [*(int(row.ids[i]) for i in order), *[EMPTY] * none], [*(min(values[i], 0.0) for i in order), *[0.0] * none]
    )


def placed(
    labels: Sequence[int], tokens: Sequence[bytes], rows: Sequence[Row], words: TokenBytes
) -> tuple[list[Row], int]:
    """A row for each label of a response, from the rows of a server's tokens, and the number that were found.

    A label has the server's row where both tokenizations of the text have the same bytes there; else, as at the end
    token, of which servers give no distribution, its label alone.
    """
    starts, here = dict[int, int](), 0
    for j, token in enumerate(tokens):
        starts.setdefault(here, j)
        here += len(token)
    found, place, count = list[Row](), 0, 0
    for label, piece in zip(labels, words.of(list(labels), silent=False), strict=True):
        here = starts.get(place, -1) if piece != END else -1
        same = here >= 0 and tokens[here] == piece
        found.append(rows[here] if same else certain(label))
        count, place = count + same, place + (0 if piece == END else len(piece))
    return found, count
