"""What batches say, in a form that can be compared, and writers that a test can foresee."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch

from kd.data.sequences import Encoder
from kd.rollouts import Rollout
from kd.rollouts.wrapping import records_of
from kd.types import Batch, Models, Progress, Record, Sequences, Written


def facts(batch: Batch) -> dict[str, Any]:
    """Every field of a batch and of its sequences, tensors as lists."""
    told = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    told["shared"] = batch.teacher is batch.student
    for name in ("student", "teacher"):
        told[name] = {f.name: _listed(getattr(told[name], f.name)) for f in fields(Sequences)}
    return {name: _listed(value) for name, value in told.items()}


def learnt(batches: Iterable[Batch]) -> dict[str, list[list[int]]]:
    """record id -> the ids that are learnt, of each response."""
    found = {}
    for batch in batches:
        for i, record in enumerate(batch.records):
            group = range(i * batch.group_size, (i + 1) * batch.group_size)
            found[record.id] = [batch.student.labels[row][batch.student.mask[row]].tolist() for row in group]
    return found


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


class Counting(Rollout):
    """Answers every prompt with the number of the call, in `samples` variants of different lengths.

    The log-probabilities are minus the place in the response; rewards are the variants' numbers.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, samples: int = 1):
        self.samples, self.calls, self.heard = samples, 0, list[dict[str, float]]()
        self.asked: list[list[str]] = []

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        records = records_of(window)
        self.asked.append([record.id for record in records])
        batches = encoder.written(records, [self.answers(encoder) for _ in records])
        self.calls += 1
        for batch in batches:
            batch.rewards = torch.arange(len(batch.student.lengths)) % self.samples * 1.0
        return batches

    def answers(self, encoder: Encoder) -> list[Written]:
        """Of this call."""
        found = []
        for variant in range(self.samples):
            ids = encoder.student(f"{self.calls}" + "!" * variant, add_special_tokens=False)["input_ids"]
            ids = (*ids, encoder.student.eos_token_id)
            logprobs = -torch.arange(1.0, len(ids) + 1)
            found.append(Written(ids, "student", logprobs, logprobs / 2))
        return found

    def take_report(self) -> dict[str, tuple[float, float]]:
        return {"calls": (float(self.calls), 1.0)}

    def after_validation(self, metrics: dict[str, float]) -> None:
        self.heard.append(metrics)


def texts(batches: Sequence[Batch]) -> dict[str, str]:
    """record id -> the first response's text."""
    return {record.id: record.responses[0].text for record in records_of(batches)}


def steps(count: int, total: int = 10) -> list[Progress]:
    """Before each of the first `count` steps."""
    return [Progress(step, total) for step in range(count)]


def window_of(encoder: Encoder, records: Sequence[Record]) -> list[Batch]:
    """Their micro-batches."""
    return encoder.batches(records)
