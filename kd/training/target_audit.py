"""An audit of the kept part of a teacher against all of it: errors of a term's value and gradient on probe sequences.

Numbers, by term (`bias`, `gradient_*`) and of the targets as such:

    bias              (value on what is kept - value on everything) / |value on everything|
    gradient_error    |g - g*| / |g*|, g the gradient of the mean over rows with respect to the last hidden states
    gradient_norm     |g| / |g*|
    gradient_cosine   g . g* / (|g| |g*|)
    teacher_mass      the teacher's mean mass on the ids that it is held by
    overlap           share of a row's ids that are also among the student's as many most probable
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from kd.evaluation.reading import reading
from kd.kernels import over_chunks
from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import HeadLogits, Logits
from kd.kernels.sparse import EMPTY, SparseLogits
from kd.seeding import seeded
from kd.training.module import Distillation
from kd.training.observation import moved, rows, signals_of
from kd.training.terms import Term
from kd.types import Batch

ON_TEACHER = {"teacher_logits", "native_teacher_logits"}


class Audit(Callback):
    """Audits a run's targets every `every` steps, and at its end, on the first `records` validation records.

    Logged as audit/<number> and audit/<term>_<number>, the same on every rank.
    """

    def __init__(self, *, every: int, records: int):
        self.every, self.records = every, records

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        """Audit at every interval and after the last step."""
        step, total = pl_module.step_count, pl_module.optimization.steps
        if step % self.every == 0 or step == total:
            with seeded(pl_module.seed, "audit", step):
                pl_module.log_all("audit", audited(pl_module, trainer.datamodule.validation[: self.records]), bar=False)


def audited(module: Distillation, records: list) -> dict[str, float]:
    """The numbers for the student as it is, means over the records' loss rows. The module is not changed."""
    found: dict[str, list[tuple[float, int]]] = {}
    for batch in module.encoder.batches(records):
        batch = moved(batch, module.device)
        with reading(module.student):
            signals = _signals(module, batch)
            kept, full = module.models.teacher.probe(batch)
        student = signals["student_logits"]
        for name, value in compared(module.objective, student, kept, full, signals).items():
            found.setdefault(name, []).append((value, student.n))
    return {name: sum(v * n for v, n in parts) / sum(n for _, n in parts) for name, parts in found.items()}


def compared(
    objective: Mapping[str, Term], student: HeadLogits, kept: SparseLogits, full: Logits, signals: Mapping[str, Any]
) -> dict[str, float]:
    """The numbers of one batch, for every term that the teacher's logits enter.

    signals: by row (`kd.training.observation.rows`), what the terms take beside the logits of student and teacher.
    """
    numbers = {"teacher_mass": kept.mass().mean().item(), "overlap": overlap(student, kept).mean().item()}
    for name, term in objective.items():
        if term.wanted & ON_TEACHER:
            (value, g), (whole, g_whole) = (_of(term, student, teacher, signals) for teacher in (kept, full))
            norm, norm_whole = g.norm(), g_whole.norm()
            numbers |= {
                f"{name}_bias": ((value - whole) / whole.abs()).item(),
                f"{name}_gradient_error": ((g - g_whole).norm() / norm_whole).item(),
                f"{name}_gradient_norm": (norm / norm_whole).item(),
                f"{name}_gradient_cosine": ((g * g_whole).sum() / (norm * norm_whole)).item(),
            }
    return numbers


def overlap(student: HeadLogits, kept: SparseLogits) -> Tensor:
    """`[n]`: the share of each row's held ids that are among the student's as many most probable."""
    shares = []
    for piece in slices(kept.n, CHUNK):
        ids = kept.ids[piece]
        held = ids != EMPTY
        top = student.rows(piece).topk(ids.shape[1], dim=-1).indices
        among = (ids[:, :, None] == top[:, None, :]) & held[:, None, :]  # the first so many of the student's
        shares.append((among.any(-1) & held).sum(-1) / held.sum(-1))
    return torch.cat(shares)


def _signals(module: Distillation, batch: Batch) -> dict[str, Any]:
    """Signals by row, without the teacher's, that a term on kept logits may take (`kd.composition.targets`).

    References have no sampling distribution; the student's own log-probabilities stand for the `behaviour` ones.
    """
    wanted = frozenset[str]().union(*(term.wanted for term in module.objective.values()))
    own = frozenset({"logits"}) | ({"logprobs"} if "behaviour_logprobs" in wanted else frozenset())
    outputs = {"student": module.student(batch.student, own)}
    if module.reference_fields:
        outputs["reference"] = module.models.reference(batch.student, module.reference_fields)
    signals = signals_of(batch, outputs, module.progress)
    if batch.behaviour_logprobs is None:
        signals["behaviour_logprobs"] = outputs["student"].logprobs
    return {name: rows(signal, batch.student) for name, signal in signals.items()}


def _of(term: Term, student: HeadLogits, teacher: Any, others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean value over the rows, and its gradient with respect to the student's last hidden states."""
    hidden = student.hidden.detach().float().requires_grad_()
    bias = student.head.bias
    bias = None if bias is None else bias.detach().float()
    head = student.head._replace(weight=student.head.weight.detach().float(), bias=bias)
    signals = {**others, "teacher_logits": teacher, "native_teacher_logits": teacher}
    weights = {"term": torch.full((student.n,), 1 / student.n, device=hidden.device)}
    with torch.enable_grad():
        wanted = {"term": term.wanted}
        value, _ = over_chunks({"term": term.loss}, HeadLogits(hidden, head), signals, weights, wanted)
        return value.detach(), torch.autograd.grad(value, hidden)[0]
