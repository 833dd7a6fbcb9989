"""A batch and the models' outputs for it, as the signals that terms take.

A signal reaches a term in one of three shapes: rows (the n positions that carry loss; chunks are cut from them), dense
rows (the same with lazy logits made), or whole (`[B T ...]`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kd.kernels.logits import Logits
from kd.signals import FROM_REWARD, FROM_ROLLOUT
from kd.types import Batch, ModelOutput, Progress, Sequences, sent


def announced(passes: list[list[tuple[str, Batch]]], teacher: Any, demands: Mapping[str, Any]) -> Any:
    """The passes of a step, each of the micro-batches of some streams, once the teacher has received those it will read
    (`Teacher.expect`). demands: of each stream, what its terms require."""
    read = [batch for together in passes for stream, batch in together if demands[stream].teacher]
    if read:
        teacher.expect(read)
    return passes


def signals_of(batch: Batch, outputs: Mapping[str, ModelOutput], progress: Progress) -> dict[str, Any]:
    """Every signal by name; None where it is not provided."""
    own: dict[str, Any] = {
        "tokens": batch.student.tokens,
        "labels": batch.student.labels,
        "mask": batch.student.mask,
        "real": batch.student.real,
        "teacher_tokens": batch.teacher.tokens,
        "teacher_labels": batch.teacher.labels,
        "teacher_mask": batch.teacher.mask,
        "teacher_real": batch.teacher.real,
        "progress": progress,
        **{name: getattr(batch, name) for name in FROM_ROLLOUT | FROM_REWARD},
    }
    return own | {f"{role}_{name}": value for role, out in outputs.items() for name, value in vars(out).items()}


def rows(signal: Any, sequences: Sequences) -> Any:
    """`[B T]` tensors at the loss rows, `[B]` tensors as the value of each row's sequence; anything else as it is."""
    if not isinstance(signal, Tensor):
        return signal
    shape, places = sequences.mask.shape, sequences.places
    if signal.shape == shape[:1]:
        return signal.index_select(0, places // shape[1])
    return signal.flatten(0, 1).index_select(0, places) if signal.shape[:2] == shape else signal


def dense_rows(signal: Any, sequences: Sequences) -> Any:
    """The same with lazy logits as `[n V]`, for terms over rows that cannot be chunked."""
    return signal.rows(slice(0, signal.n)) if isinstance(signal, Logits) else rows(signal, sequences)


def whole(signal: Any, sequences: Sequences) -> Any:
    """Lazy logits as `[B T V]`, for terms that are no sum over rows; zero where there is no loss."""
    if not isinstance(signal, Logits):
        return signal
    made, mask = signal.rows(slice(0, signal.n)), sequences.mask
    return made.new_zeros(mask.numel(), signal.size).index_copy(0, sequences.places, made).view(*mask.shape, -1)


def sequences_of(signal: str, batch: Batch) -> Sequences:
    """The sequences in whose tokens a signal is written: the teacher's own, or the student's."""
    own = signal.startswith("native_teacher_") or signal in ("teacher_tokens", "teacher_labels", "teacher_mask")
    return batch.teacher if own else batch.student


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; one object for both models stays one."""
    student = batch.student.to(device)
    teacher = student if batch.teacher is batch.student else batch.teacher.to(device)
    tensors: dict[str, Any] = {name: sent(x, device) for name, x in vars(batch).items() if isinstance(x, Tensor)}
    return replace(batch, student=student, teacher=teacher, **tensors)
