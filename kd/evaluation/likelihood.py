"""The likelihood of the references under a model, and its divergence from the teacher at their tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.data.references import references, size
from kd.data.sequences import Encoder
from kd.evaluation.agreement import top1_agreement
from kd.evaluation.positions import SUMS as BY_POSITION
from kd.evaluation.positions import Bins, binned, of_itself
from kd.evaluation.reading import read, reading
from kd.evaluation.teacher_rows import Rows
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import Logits
from kd.metrics.table import ON_TEACHER
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import log_probs
from kd.progress import Phase, phase
from kd.teachers.ensemble import Ensemble
from kd.types import Batch, Record

SUMS = ("nll", *ON_TEACHER)
REFERENCE_COLUMNS = ("id", "nll", "tokens", "bytes", *ON_TEACHER, "positions")
VALUES = ("nll", *BY_POSITION)  # of each token


def score_references(
    model: LanguageModel | Ensemble,
    encoder: Encoder,
    records: Sequence[Record],
    *,
    teacher_rows: Rows | None = None,
    chunk: int = CHUNK,
) -> pd.DataFrame:
    """One row per record whose reference fits whole (`kd.data.references`), in the records' order.

    Columns: id; nll, in nats; tokens; bytes, of the reference's text in UTF-8; and against the teacher top1 (how
    many most probable ids are the teacher's), forward_kl = KL(teacher || model) and reverse_kl, in nats. All are
    sums over the reference's tokens and the end token, which has no bytes. Without `teacher_rows` these three
    columns are NaN. positions: the same and the entropies by bins of positions (`kd.evaluation.positions.Bins`).

    chunk: rows of the vocabulary's width that exist at a time.
    """
    items = references(encoder, records)
    with reading(model), phase("evaluate", len(items), "references") as shown:
        pairs = _advancing(read(model, encoder.batches(items)), shown)
        return tabulate(items, pairs, teacher_rows=teacher_rows, chunk=chunk)


def score_teacher(encoder: Encoder, items: Sequence[Record], *, teacher_rows: Rows) -> pd.DataFrame:
    """The teacher's own table, without another forward pass: with itself it agrees everywhere."""
    table = tabulate(items, ((batch, teacher_rows.of(batch.records)) for batch in encoder.batches(items)))
    itself = {"top1": table["tokens"].astype(float), "forward_kl": 0.0, "reverse_kl": 0.0}
    return table.assign(**itself, positions=table["positions"].map(of_itself))


def tabulate(
    items: Sequence[Record],
    pairs: Iterable[tuple[Batch, Logits]],
    *,
    teacher_rows: Rows | None = None,
    chunk: int = CHUNK,
) -> pd.DataFrame:
    """The table of `score_references` from batches and a system's logits of their loss rows.

    Raises:
        ValueError: system and teacher have different numbers of ids.
    """
    sums: dict[str, list[Any]] = {}
    for batch, logits in pairs:
        teacher = None if teacher_rows is None else teacher_rows.of(batch.records)
        if teacher is not None and teacher.size != logits.size:
            raise ValueError(
                f"the teacher has {teacher.size} ids and the system {logits.size}, so their distributions cannot be "
                "compared; use models that share one tokenizer, or measure without the teacher"
            )
        sequences = batch.student
        values = _row_values(logits, teacher, sequences.labels[sequences.mask], chunk)
        for record, rows in zip(batch.records, values.split(sequences.mask.sum(1).tolist()), strict=True):
            sums[record.id] = [*rows[:, : len(SUMS)].sum(0).tolist(), len(rows), binned(rows[:, 1:])]
    columns = [*SUMS, "tokens", "positions"]
    measured = pd.DataFrame([sums[item.id] for item in items], columns=columns).astype({"tokens": int})
    measured.insert(0, "id", [item.id for item in items])
    measured["bytes"] = [size(item) for item in items]
    return measured[list(REFERENCE_COLUMNS)]


def nlls(model: LanguageModel | Ensemble, batches: Sequence[Batch], *, chunk: int = CHUNK) -> dict[str, float]:
    """-log p of the response of each record, by its id, in nats, summed over its tokens."""
    found: dict[str, float] = {}
    with reading(model):
        for batch, logits in read(model, batches):
            mask = batch.student.mask
            values = _row_values(logits, None, batch.student.labels[mask], chunk)[:, 0].split(mask.sum(1).tolist())
            found |= {record.id: float(one.sum()) for record, one in zip(batch.records, values, strict=True)}
    return found


def forward_kls(
    model: LanguageModel, teacher: LanguageModel, batches: Sequence[Batch], *, chunk: int = CHUNK
) -> dict[str, tuple[float, Bins]]:
    """KL(teacher || model) at the tokens of the response of each record, by its id, in nats, summed; and its bins."""
    found: dict[str, tuple[float, Bins]] = {}
    column = VALUES.index("forward_kl")
    with reading(model), reading(teacher):
        for (batch, logits), (_, theirs) in zip(read(model, batches), read(teacher, batches), strict=True):
            mask = batch.student.mask
            rows = _row_values(logits, theirs, batch.student.labels[mask], chunk).split(mask.sum(1).tolist())
            for record, one in zip(batch.records, rows, strict=True):
                found[record.id] = float(one[:, column].sum()), binned(one[:, 1:])
    return found


def _row_values(logits: Logits, teacher: Logits | None, labels: Int[Tensor, " n"], chunk: int) -> Float[Tensor, "n 6"]:
    """The columns of VALUES of every loss row, in float64 on the CPU, where sums over a record lose nothing."""
    pieces = [
        _chunk_values(logits.rows(piece), None if teacher is None else teacher.rows(piece), labels[piece])
        for piece in slices(logits.n, chunk)
    ]
    return torch.cat(pieces)


def _chunk_values(
    logits: Float[Tensor, "c V"], teacher_logits: Float[Tensor, "c V"] | None, labels: Int[Tensor, " c"]
) -> Float[Tensor, "c 6"]:
    """The divergences are those of `kd.objectives.divergence.kl`; both, and the entropies, share each exponential."""
    q = log_probs(logits)
    nll = -q.gather(-1, labels.to(q.device)[:, None])[:, 0]
    own = q.exp()
    if teacher_logits is None:
        top1 = forward = reverse = teacher_entropy = torch.full_like(nll, torch.nan)
    else:
        p = log_probs(teacher_logits).to(q.device)
        theirs = p.exp()
        excess, apart = own - theirs, p - q
        top1 = top1_agreement(q, p)
        forward, reverse = (theirs * apart).add_(excess).sum(-1), -(own * apart).add_(excess).sum(-1)
        teacher_entropy = -theirs.mul_(p).sum(-1)
    values = (nll, top1, forward, reverse, -own.mul_(q).sum(-1), teacher_entropy)
    return torch.stack([value.cpu().double() for value in values], dim=-1)


def _advancing(pairs: Iterable[tuple[Batch, Logits]], shown: Phase) -> Iterator[tuple[Batch, Logits]]:
    for batch, logits in pairs:
        yield batch, logits
        shown.tokens += int(batch.student.lengths.sum())
        shown.advance(len(batch.records))
