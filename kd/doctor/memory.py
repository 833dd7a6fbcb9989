"""A run's peak memory, estimated from its parts (docs/doctor.md has the formulas)."""

from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd.data.sequences import Encoded, collate
from kd.doctor.layout import Layout
from kd.doctor.room import layout_of, on_gpu
from kd.doctor.shards import autocast, gathered, storage, stored, tensors, trained_bytes
from kd.experiment.build import Parts
from kd.experiment.checks import Subject, teachers
from kd.kernels.chunks import CHUNK, chunk_rows
from kd.models.hardware import recomputing
from kd.models.language_model import LanguageModel
from kd.signals import ROLES
from kd.types import Record

LIVE_PIECES = 7  # float32 tensors of the logits evaluated at a time, held by a divergence (JSD) and its gradient
LIVE_HEADS = 3  # gradients of a head's shape that meet at the beginning of the backward pass
KEPT_WHOLE = 4  # tensors like the student's whole logits that a term keeps for its backward pass: 1.6 to 6 measured
LIVE_LAYER = 4  # tensors as wide as a layer's widest that a forward pass without gradient holds at once


@dataclass(frozen=True)
class Item:
    """A part of a run that takes memory.

    Attributes:
        held: False for a part that lies on disk and is not in the peak.
        once: whether the first process of several alone has it.
    """

    name: str
    size: int  # bytes
    how: str
    held: bool = True
    once: bool = False


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a run."""

    rows: int
    length: int  # tokens of each row

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.rows * self.length


def estimate(subject: Subject) -> list[Item]:
    """The memory of a process when the backward pass of a later step begins, and the size of a checkpoint on disk.

    Other phases are those of `kd.doctor.peaks`.
    """
    module, load, layout = subject.parts.module, heaviest(subject), layout_of(subject.cfg)
    precision, student = subject.cfg.trainer.precision, module.student
    network = trained_bytes(student)
    terms = trained_bytes(module) - network
    narrows = layout.sharded and autocast(precision, student.network.dtype) != student.network.dtype
    kept = activations(student, load, precision, module.student_fields, copied=not narrows)
    frozen = [model for model in _required(subject) if model is not student]  # a live teacher is
    whole = gathered(student, frozen, layout, precision, module.student_fields)
    part = "a process's part of " if layout.sharded else ""
    items = [
        Item("student", stored(student) // layout.weights, f"{part}its weights and buffers"),
        Item("terms", stored(module.stateful), "weights and buffers of the objective, projections among them"),
        Item("gradients", network // layout.gradients + terms, "one per trained weight"),
        Item("AdamW", 2 * (network // layout.moments + terms), "two moments per trained weight"),
        *_of_the_frozen(subject, load, layout),
        Item("gathered", whole, "weights and gradients that are whole while a block is computed"),
        Item("activations", kept, f"of {load.rows} x {load.length} tokens, for the backward pass"),
        Item("head", head_pass(student, load), "one chunk of logits, or the head's gradients"),
        Item("whole logits", whole_logits(subject.parts, load), "of terms that are not evaluated in chunks"),
    ]
    if layout.buckets or str(subject.cfg.trainer.strategy).startswith("ddp"):
        items.append(Item("buckets", network + terms, "gradients on their way to the other ranks"))
    if layout.sharded and not on_gpu(subject.cfg):
        items.append(Item("whole models", stored(models(subject)), "of the first process, for the end", once=True))
    items.append(Item("last.ckpt", 3 * (network + terms), "trained weights and their moments", held=False))
    return [item for item in items if item.size]


def _of_the_frozen(subject: Subject, load: Load, layout: Layout) -> Iterator[Item]:
    """The memory of teacher and reference."""
    parts, module = subject.parts, subject.parts.module
    part = "a process's part of " if layout.teacher > 1 else ""
    if parts.teacher is not None and not layout.offloads:
        unread = "" if module.teacher_fields else ", which no term reads"
        yield Item("teacher", stored(parts.teacher) // layout.teacher, f"{part}its weights and buffers{unread}")
    if (made := own(subject)) is not None:
        beside = stored(nn.ModuleList([module.student, made])) - stored(module.student)
        yield Item("own teacher", beside // layout.teacher, f"{part}a copy of what the student trains")
    if module.models.reference is not None:
        yield Item("reference", stored(module.models.reference) // layout.teacher, f"{part}the student as it begins")
    if required := _required(subject):  # they read one after the other
        size = max(widest(model) * model.network.dtype.itemsize for model in required)
        passing = LIVE_LAYER * load.tokens * size
        yield Item("frozen layer", passing, f"{LIVE_LAYER} x {load.tokens} tokens x {size} bytes")
        provided = sum(features(model, load, fields) for model, fields in required.items())
        yield Item("frozen features", provided, "states, attention, vectors that terms read of teacher and reference")


def own(subject: Subject) -> Any:
    """The teacher that is made of the student, or None."""
    teacher = subject.parts.module.models.teacher
    return teacher if teacher is not None and teacher.follows_student else None


def _required(subject: Subject) -> dict[LanguageModel, Set[str]]:
    """The frozen models that a step reads, and what of them."""
    parts, module = subject.parts, subject.parts.module
    required: dict[LanguageModel, Set[str]] = {}
    if module.teacher_fields:
        required |= dict.fromkeys(teachers(parts).values(), module.teacher_fields)
        required |= {} if own(subject) is None else {own(subject).model: module.teacher_fields}
    if module.reference_fields:
        required[module.models.reference.model] = module.reference_fields
    return required


def models(subject: Subject) -> nn.ModuleList:
    """Student, teacher and reference, as far as there are any."""
    frozen = (subject.parts.teacher, subject.parts.module.models.reference, own(subject))
    return nn.ModuleList([subject.parts.module.student, *(model for model in frozen if model is not None)])


def peak(items: Sequence[Item]) -> int:
    """Bytes held at once."""
    return sum(item.size for item in items if item.held)


def heaviest(subject: Subject) -> Load:
    """The largest micro-batch that `data.max_tokens`, `optim.window` and the records' lengths allow on one rank."""
    cfg, parts = subject.cfg, subject.parts
    shapes = [_shape(record, subject) for record in parts.data.train]
    length = max((length for length, _ in shapes), default=1)
    responses = max((rows for _, rows in shapes), default=1)
    if not parts.module.rollout.keeps_responses:  # lengths of generated responses are not known
        length, responses = cfg.data.max_length - 1, max(responses, parts.module.rollout.samples)
    records = -(-cfg.optim.window // layout_of(cfg).devices)
    return largest(length, responses, records, cfg.data.max_tokens)


def largest(length: int, responses: int, records: int, max_tokens: int) -> Load:
    """The largest micro-batch of so many records; the responses to a prompt are never divided.

    length: tokens of each response with its prompt. responses: of each record.
    """
    together = max(1, min(max_tokens // (length * max(1, responses)), records))
    return Load(together * max(1, responses), length)


def _shape(record: Record, subject: Subject) -> tuple[int, int]:
    rows = subject.parts.encoder.encode(record) or ()
    return max((len(row.ids) - 1 for row in rows), default=1), len(rows)


def widest(model: LanguageModel) -> int:
    """Width of the widest tensor that a layer computes, per token."""
    config: Any = model.network.config.get_text_config()
    return max(config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size)


def head_pass(student: LanguageModel, load: Load) -> int:
    """Chunks of logits beside one gradient of the head while the loss is made; the head's gradients thereafter."""
    weight = student.network.get_output_embeddings().weight
    head = weight.numel() * weight.element_size() if weight.requires_grad else 0
    chunk, piece = (
        min(rows, load.tokens) * student.vocabulary * 4
        for rows in (chunk_rows(student.vocabulary, torch.float32), CHUNK)
    )
    return max(2 * chunk + LIVE_PIECES * piece + head, LIVE_HEADS * head)


def features(model: LanguageModel, load: Load, fields: Set[str]) -> int:
    """Bytes of a frozen model's outputs for the terms beside its lazy logits; kept until the terms are evaluated."""
    shape, tokens = model.shape, load.tokens
    joined = shape.heads * shape.head_width if shape.heads and shape.head_width else shape.width
    numbers = {
        "hidden": (shape.layers + 1) * tokens * shape.width,
        "qkv": 3 * shape.layers * tokens * joined,
        "attentions": shape.layers * (shape.heads or 1) * tokens * load.length,
    }
    return model.network.dtype.itemsize * sum(number for name, number in numbers.items() if name in fields)


def whole_logits(parts: Parts, load: Load) -> int:
    """Bytes of `[n V]` in float32: of each model whose logits a term reads that is not row-wise, and what it keeps."""
    module = parts.module
    native = module.models.teacher
    ids = {role: module.student.vocabulary for role in ROLES}
    ids["native_teacher"] = 0 if native is None else native.vocabulary
    dense = [term.wanted for term in module.objective.values() if not term.row_wise]
    taken = [[role for role in ROLES if f"{role}_logits" in wanted] for wanted in dense]
    kept = KEPT_WHOLE * module.student.vocabulary * sum("student" in roles for roles in taken)
    return 4 * load.tokens * (sum(ids[role] for roles in taken for role in roles) + kept)


@dataclass(frozen=True)
class Activations:
    """Bytes kept of a micro-batch for the backward pass of a network.

    Attributes:
        whole: without gradient checkpointing.
        recomputed: with it: the input of each layer, what lies outside of the layers, and one that is recomputed.
        checkpointing: whether the run has it.
        copies: those of the weights that autocast makes, in either case.
    """

    whole: int
    recomputed: int
    checkpointing: bool = False
    copies: int = 0

    @property
    def taken(self) -> int:
        """Those of the run."""
        return self.recomputed if self.checkpointing else self.whole

    def under(self, checkpointing: bool) -> "Activations":
        """The same network with or without it."""
        return replace(self, checkpointing=checkpointing)


def activations(
    student: LanguageModel,
    load: Load,
    precision: str,
    fields: frozenset[str] = frozenset({"logits"}),
    *,
    copied: bool = True,
) -> int:
    """Bytes kept for the backward pass of the student's network, as it is, for a whole micro-batch.

    `fields` are those that the objective requires: attention that a term reads is not fused, and keeps its square.
    copied: whether autocast copies the weights, as it does unless they are gathered in the type that is computed in.
    """
    if student.network.is_activation_checkpointing:
        found = activations_of(student, load, precision, fields)
        return found.recomputed - (0 if copied else found.copies)
    copies, inside = _kept(student, load, precision, fields)
    return copies * copied + inside


def activations_of(
    student: LanguageModel, load: Load, precision: str, fields: frozenset[str] = frozenset({"logits"})
) -> Activations:
    """Bytes kept with and without gradient checkpointing; the head is not in it.

    What autocast casts (a copy of the weights) is kept in either case until the end of the step.
    """
    network = student.network
    before = network.is_activation_checkpointing
    try:
        network.activation_checkpointing_disable()
        copies, inside = _kept(student, load, precision, fields)
        if not network.supports_gradient_checkpointing:
            return Activations(copies + inside, copies + inside, copies=copies)
        recomputing(network)
        _, outside = _kept(student, load, precision, fields)
    finally:
        if before:
            recomputing(network)
        else:
            network.activation_checkpointing_disable()
    recomputed = copies + outside + max(inside - outside, 0) // student.shape.layers
    return Activations(copies + inside, recomputed, before, copies)


def _kept(student: LanguageModel, load: Load, precision: str, fields: frozenset[str]) -> tuple[int, int]:
    """a, and R (b L + c L^2), for R rows of L tokens, by autograd's hook on three short rows.

    Of layers that are recomputed it sees the inputs alone.
    """
    limit = getattr(student.network.config.get_text_config(), "max_position_embeddings", None) or load.length
    longest = min(128, limit)
    sizes = [longest // 4, longest // 2, longest]
    counted = [saved_bytes(student, size, precision, fields) for size in sizes]
    constant, linear, square = np.linalg.solve(np.vander(sizes, 3, increasing=True), counted)
    return round(constant), round(load.rows * (linear * load.length + max(square, 0.0) * load.length**2))


def saved_bytes(
    student: LanguageModel, length: int, precision: str, fields: frozenset[str] = frozenset({"logits"})
) -> int:
    """Bytes that autograd saves for one row of `length` tokens, in train mode; weights and buffers are not counted."""
    own = {storage(tensor) for tensor in tensors(student)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := storage(tensor)) not in own:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # holds the storage, so that its address is not used again

    training, sequences = student.training, collate([Encoded((0,) * (length + 1), 1)], pad=0)
    mixed = torch.autocast("cpu", torch.bfloat16) if precision.endswith("mixed") else nullcontext()
    student.train()
    with torch.enable_grad(), mixed, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = student(sequences, fields)
    student.train(training)
    del output
    return sum(kept.values())


def mib(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.0f} MiB"
