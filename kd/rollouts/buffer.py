"""Sequences that were generated at earlier steps, kept in groups.

A group is a batch of one record: the samples of its prompt, without padding beyond the longest of them. The signals
that were computed when they were generated (rewards, the writer's log-probabilities) are kept with them; models'
outputs are not. Objects in a record's meta that a checkpoint without code could not hold (a skill's own objects) are
dropped: they serve to score responses, and those have been scored by then.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kd.data.images import from_plain
from kd.data.images import plain as plain_images
from kd.data.sequences import Encoder, micro_batches, pad_id
from kd.types import Batch, Record, Response, Sequences

TENSORS = ("tokens", "labels", "mask", "lengths")  # of Sequences
SIGNALS = tuple(f.name for f in fields(Batch) if f.name not in ("student", "teacher", "records", "group_size"))


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, and the optimizer step that they were generated for."""

    batch: Batch
    step: int

    @property
    def size(self) -> int:
        """Sequences."""
        return self.batch.group_size


class Buffer:
    """The newest groups, of `capacity` sequences together at the most; a group is kept or dropped as a whole."""

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"rollout.capacity={capacity} keeps nothing; set it to the sequences of a window or more")
        self.capacity = capacity
        self.groups = deque[Group]()

    def __len__(self) -> int:
        return sum(group.size for group in self.groups)

    def has_room(self, size: int) -> bool:
        """True if a group of `size` sequences can be kept without dropping another."""
        return len(self) + size <= self.capacity

    def add(self, batches: Sequence[Batch], step: int) -> None:
        """Keeps the responses generated for `step`, in place of the oldest.

        Raises ValueError for a group that is larger than the buffer.
        """
        for batch in split(batches):
            if batch.group_size > self.capacity:
                raise ValueError(
                    f"rollout.capacity={self.capacity} is less than the {batch.group_size} responses to one prompt; "
                    "raise it"
                )
            self.groups.append(Group(batch, step))
            while len(self) > self.capacity:
                self.groups.popleft()

    def expire(self, oldest: int) -> None:
        """Drops the responses generated for steps before `oldest`."""
        self.groups = deque(group for group in self.groups if group.step >= oldest)

    def sample(self, count: int) -> list[Group]:
        """`count` different groups, drawn from torch's global generator; all, in their order, if there are no more."""
        if count >= len(self.groups):
            return list(self.groups)
        return [self.groups[i] for i in torch.randperm(len(self.groups))[:count].tolist()]

    def state_dict(self) -> list[dict[str, Any]]:
        """The groups as plain Python and tensors."""
        return [{"step": group.step, **_plain(group.batch)} for group in self.groups]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Replaces the content by the state that `state_dict` returned."""
        self.groups = deque(Group(_batch(kept), kept["step"]) for kept in state)


# ---- batches and groups ----------------------------------------------------------------------------------------------


def split(batches: Iterable[Batch]) -> list[Batch]:
    """Batches of one record each, on the CPU, each as wide as its longest row."""
    return [_group(batch, i) for batch in batches for i in range(len(batch.records))]


def merge(groups: Sequence[Batch], encoder: Encoder) -> list[Batch]:
    """Micro-batches of these groups, bounded as the encoder bounds its own."""
    if not groups:
        return []
    widths = [max(int(part.lengths.max()) for part in (group.student, group.teacher)) for group in groups]
    sizes = [width * group.group_size for width, group in zip(widths, groups, strict=True)]
    places = micro_batches(sizes, encoder.max_tokens, encoder.max_padding)
    return [_merged([groups[i] for i in place], encoder) for place in places]


def _group(batch: Batch, i: int) -> Batch:
    rows = slice(i * batch.group_size, (i + 1) * batch.group_size)
    student = _rows(batch.student, rows)
    width = student.tokens.shape[1]
    signals: dict[str, Any] = {
        name: None if value is None else _kept(value[rows], width) for name, value in signals_of(batch).items()
    }
    return replace(
        batch,
        student=student,
        teacher=student if batch.teacher is batch.student else _rows(batch.teacher, rows),
        records=(_without_objects(batch.records[i]),),
        **signals,
    )


def _without_objects(record: Record) -> Record:
    return replace(record, meta={key: value for key, value in record.meta.items() if _is_plain(value)})


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.keys())) and all(map(_is_plain, value.values()))
    return type(value) in (str, int, float, bool, NoneType)  # no subclasses: numpy's float64 is a float


def _rows(sequences: Sequences, rows: slice) -> Sequences:
    if sequences.padding_side != "right":
        raise ValueError(f"sequences padded on the {sequences.padding_side} are not kept in a buffer; pad on the right")
    part = sequences.at(rows)
    width = int(part.lengths.max())
    kept: dict[str, Any] = {name: _kept(getattr(part, name), width) for name in TENSORS}
    return replace(part, **kept)


def _kept(value: Tensor, width: int) -> Tensor:
    """A copy: a view would keep the whole batch alive, and be saved with it."""
    return value[:, :width].detach().cpu().clone() if value.dim() == 2 else value.detach().cpu().clone()


def _merged(groups: Sequence[Batch], encoder: Encoder) -> Batch:
    first = groups[0]
    student = _stacked([group.student for group in groups], pad_id(encoder.student))
    pad_teacher = pad_id(encoder.teacher or encoder.student)
    width = student.tokens.shape[1]
    signals: dict[str, Any] = {}
    for name in SIGNALS:
        values = [getattr(group, name) for group in groups]
        signals[name] = None if any(v is None for v in values) else torch.cat([_wide(v, width, 0) for v in values])
    return replace(
        first,
        student=student,
        teacher=student if first.teacher is first.student else _stacked([g.teacher for g in groups], pad_teacher),
        records=tuple(record for group in groups for record in group.records),
        **signals,
    )


def _stacked(parts: Sequence[Sequences], filler: int) -> Sequences:
    width = max(part.tokens.shape[1] for part in parts)
    fill = {"tokens": filler, "labels": filler, "mask": 0, "lengths": 0}
    joined = {name: [_wide(getattr(part, name), width, filler) for part in parts] for name, filler in fill.items()}
    whole: dict[str, Any] = {name: torch.cat(pieces) for name, pieces in joined.items()}
    if any(part.pixels for part in parts):
        whole["pixels"] = tuple(row for part in parts for row in part.pixels or ({},) * len(part.tokens))
    return replace(parts[0], **whole)


def _wide(value: Tensor, width: int, filler: int) -> Tensor:
    return pad(value, (0, width - value.shape[1]), value=filler) if value.dim() == 2 else value


def signals_of(batch: Batch) -> dict[str, Any]:
    """The signals that came with the sequences, by name; None where a signal is absent."""
    return {name: getattr(batch, name) for name in SIGNALS}


def without_logprobs(batch: Batch) -> Batch:
    """The batch without the signals that only its writer could provide: log-probabilities and weights made of them."""
    return replace(batch, behaviour_logprobs=None, old_logprobs=None, importance_weights=None)


# ---- plain state -----------------------------------------------------------------------------------------------------


def _plain(batch: Batch) -> dict[str, Any]:
    shared = batch.teacher is batch.student
    return {
        "student": _plain_sequences(batch.student),
        "teacher": None if shared else _plain_sequences(batch.teacher),
        "record": _plain_record(batch.records[0]),
        "group_size": batch.group_size,
        "signals": signals_of(batch),
    }


def _plain_sequences(sequences: Sequences) -> dict[str, Any]:
    images = [{name: x.detach().cpu() for name, x in row.items()} for row in sequences.pixels]
    return {**{name: getattr(sequences, name) for name in TENSORS}, "pixels": images}


def _sequences(kept: dict[str, Any]) -> Sequences:
    return Sequences(**{**kept, "pixels": tuple(kept.get("pixels", ()))})


def _batch(kept: dict[str, Any]) -> Batch:
    student = _sequences(kept["student"])
    teacher = student if kept["teacher"] is None else _sequences(kept["teacher"])
    return Batch(student, teacher, (_record(kept["record"]),), kept["group_size"], **kept["signals"])


def _plain_record(record: Record) -> dict[str, Any]:
    """The record with its dataclasses and mappings as dicts."""
    plain = {f.name: getattr(record, f.name) for f in fields(Record)}
    plain["responses"] = [asdict(response) for response in record.responses]
    plain["images"] = plain_images(record.images)
    return plain | {
        "prompt": [dict(message) for message in record.prompt],
        "provenance": list(record.provenance),
        "meta": dict(record.meta),
    }


def _record(plain: dict[str, Any]) -> Record:
    return Record(
        **{
            **plain,
            "prompt": tuple(plain["prompt"]),
            "responses": tuple(Response(**response) for response in plain["responses"]),
            "provenance": tuple(plain["provenance"]),
            "images": from_plain(plain.get("images", ())),
        }
    )
