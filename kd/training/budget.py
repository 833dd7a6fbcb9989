"""What a run has spent, for comparisons at equal budget."""

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

Bound = Annotated[float | int, Field(gt=0)]


@dataclass
class Budget:
    """Over all ranks. Tokens are real ones: padding is paid for, but teaches nothing.

    tokens: read by the student while training (forward and backward), prompts included.
    rows: loss rows, those that met the head. padded: positions of padding beside them.
    responses: that the student learnt on or should have. masked: those among them without a single loss row.
    teacher_tokens: read by the teacher; from the first step on with what it read and wrote before (an augmentation,
    cached or not; cached targets, each record that the run meets once).
    generated_tokens: written by the student.
    student_flops: of training and of writing, and of what a frozen copy of it reads as the reference
    (`kd.models.flops`): the same work counts the same however it is implemented.
    judge_flops: of networks that are neither student nor teacher: what a reward model reads to judge, and what a
    discriminator reads to judge and to learn. No limit is set on them, and equal `student_flops` leave them out: say
    them beside.
    peak_memory_bytes: the first rank's, while it trained: allocated on its GPU, else resident.
    """

    tokens: int = 0
    rows: int = 0
    padded: int = 0
    responses: int = 0
    masked: int = 0
    teacher_tokens: int = 0
    generated_tokens: int = 0
    student_flops: int = 0
    judge_flops: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """Where a run stops, whichever it reaches first; beside `optim.steps`. Each is of a counter of `Budget`.

    The step that crosses a limit is the last. Schedules run over the share of the limit that is used up, so that a run
    that stops early has ended its schedule too.
    """

    student_flops: Bound | None = None
    tokens: Bound | None = None
    teacher_tokens: Bound | None = None
    generated_tokens: Bound | None = None
    seconds: Bound | None = None

    def share(self, spent: Budget) -> float:
        """The largest share of any limit that is used up."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return max((getattr(spent, name) / limit for name, limit in limits.items() if limit), default=0.0)


def forget_peak_memory() -> None:
    """From now on `peak_memory_bytes` is about what comes; where the system cannot forget, about the whole process."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Of this process since `forget_peak_memory`: allocated on the GPU if it used one, else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
