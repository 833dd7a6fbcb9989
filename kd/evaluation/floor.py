"""Floors of the evaluation: distributions without a context, uniform or of token counts, that a student must beat."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.data.references import references
from kd.data.sequences import Encoder
from kd.evaluation.likelihood import tabulate
from kd.evaluation.positions import with_top1
from kd.evaluation.teacher_rows import Rows
from kd.kernels.chunks import CHUNK
from kd.types import Record


@dataclass(frozen=True)
class Unconditional:
    """One distribution for every position, whatever came before."""

    logprobs: Float[Tensor, " V"]

    @property
    def identity(self) -> str:
        """Name of the distribution by content."""
        return "unconditional " + hashlib.sha256(self.logprobs.numpy().tobytes()).hexdigest()

    def score_references(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        *,
        teacher_rows: Rows | None = None,
        chunk: int = CHUNK,
    ) -> pd.DataFrame:
        """The table of `kd.evaluation.likelihood.score_references`; top1 is the mode's, the KLs are exact.

        The uniform distribution has no mode: its top1 is tokens / V, the expected value of a guess at each position.
        """
        items = references(encoder, records)
        logprobs = self.logprobs if teacher_rows is None else self.logprobs.to(teacher_rows.device)
        pairs = ((batch, _Repeated(logprobs, int(batch.student.mask.sum()))) for batch in encoder.batches(items))
        with torch.no_grad():
            table = tabulate(items, pairs, teacher_rows=teacher_rows, chunk=chunk)
        if teacher_rows is not None and self.logprobs.min() == self.logprobs.max():
            table["top1"] = table["tokens"] / len(self.logprobs)
            table["positions"] = [with_top1(bins, 1 / len(self.logprobs)) for bins in table["positions"]]
        return table


def uniform(vocabulary: int) -> Unconditional:
    """log 1/V for each of V ids."""
    return Unconditional(torch.full((vocabulary,), 1 / vocabulary).log())


def unigram(encoder: Encoder, records: Sequence[Record], vocabulary: int) -> Unconditional:
    """(count(v) + 1) / (N + V): add-one (Laplace) smoothing over all V ids of the student's tokenizer.

    Tokens are counted over the first responses of `records`, end token included, truncated as for training.
    """
    ids = [id for record in records for row in (encoder.encode(record) or ())[:1] for id in row.ids[row.prompt :]]
    counts: Int[Tensor, " V"] = torch.tensor(ids, dtype=torch.long).bincount(minlength=vocabulary)
    return Unconditional(((counts + 1).double() / (len(ids) + vocabulary)).log().float())


@dataclass(frozen=True)
class _Repeated:
    """The same row n times, as `kd.kernels.logits.Logits`."""

    logprobs: Float[Tensor, " V"]
    n: int

    @property
    def size(self) -> int:
        return len(self.logprobs)

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        return self.logprobs.expand(len(range(self.n)[index]) if isinstance(index, slice) else len(index), -1)

    def cast(self) -> "_Repeated":
        return self
