"""Tables of memory: what a device holds in each phase of a job, and in those of a grid's jobs."""

from collections.abc import Mapping

from kd.doctor.layout import REMEDY, UNCOUNTED
from kd.doctor.needs import Needs
from kd.doctor.workload import Assumed
from kd.reports.grid import Cell, Grid

OWN = 2 * 2**30  # bytes that PyTorch, the driver and the communication of ranks take beside tensors
NAMES = {  # of parts, in the order of the table
    "student": "weights of the student",
    "teacher": "weights of the teacher",
    "gradients": "gradients",
    "AdamW": "moments of AdamW",
    "buckets": "gradients on their way",
    "gathered": "gathered weights",
    "activations": "activations",
    "head": "logits in chunks",
    "layer": "a layer of the frozen",
    "prompts": "a layer that reads prompts",
    "decoder": "weights of the decoder",
    "logits": "logits of next tokens",
    "cache": "keys and values",
    "engine": "engine of its own",
}
COLUMNS = {  # of a grid's table
    "student": ("student",),
    "teacher": ("teacher",),
    "state": ("gradients", "AdamW", "buckets"),
    "working": ("gathered", "activations", "head", "layer", "decoder", "prompts", "logits", "cache", "engine"),
}
OF_MEMORY = (
    "Memory of one device, in GiB. prepare, elicit, evaluate: on one device, with whole models. train: the largest "
    "micro-batch, in a later step. generate: in the rollout, between two steps."
)
OF_COLUMNS = (
    "student, teacher: weights. state: gradients and two moments of AdamW. working: activations, logits in chunks, a "
    "layer of the teacher, gathered weights; in generation keys and values."
)
UNMEASURED = (
    "Counted are tensors in use. On a CPU freed memory adds up to a third (docs/scale.md); on a GPU none was ever "
    "measured."
)


def memory_of_job(one: Needs, assumed: Assumed) -> Grid:
    """One line for each part, one column for each phase."""
    phases, used = list(one.memory), [name for name in NAMES if any(parts.get(name) for parts in one.memory.values())]
    rows = [[NAMES[name], *(_gib(parts.get(name, 0)) for parts in one.memory.values())] for name in used]
    rows.append(["sum", *(_gib(sum(parts.values())) for parts in one.memory.values())])
    notes = [_verdict({phase: (phase, one) for phase in phases}, assumed), *_facts(one), OF_MEMORY, UNMEASURED]
    return Grid("Memory", ["part", *(phase.replace(" ", "\n") for phase in phases)], rows, notes)


def memory_of_grid(arms: Mapping[str, Needs], assumed: Assumed) -> Grid:
    """One line for each arm and phase: memory by part."""
    lines = [(arm, phase, parts) for arm, one in arms.items() for phase, parts in one.memory.items()]
    rows = [
        [
            arm.replace(" ", "\n") or "the run",
            phase,
            *(_gib(sum(parts.get(name, 0) for name in held)) for held in COLUMNS.values()),
            _gib(sum(parts.values())),
        ]
        for arm, phase, parts in lines
    ]
    named = {f"{phase} of {arm or 'the run'}": (phase, one) for arm, one in arms.items() for phase in one.memory}
    facts = dict.fromkeys(fact for one in arms.values() for fact in _facts(one)[1:])
    notes = [_verdict(named, assumed), *facts, OF_MEMORY, OF_COLUMNS, UNMEASURED]
    return Grid("Memory", ["job", "phase", *COLUMNS, "sum"], rows, notes, labels=2, stacks=True)


def _verdict(phases: Mapping[str, tuple[str, Needs]], assumed: Assumed) -> str:
    """The phases that do not fit, each with a key that helps."""
    room = assumed.gpu.memory - OWN
    over = {
        name: f"{sum(one.memory[phase].values()) / 2**30:.0f} GiB, {one.remedies.get(phase, '')}"
        for name, (phase, one) in phases.items()
        if sum(one.memory[phase].values()) > room
    }
    limit = f"{assumed.gpu.name} has {assumed.gpu.memory / 2**30:g} GiB, {room / 2**30:g} beside what PyTorch takes"
    if not over:
        return f"{limit}: every phase fits."
    return f"{limit}. TOO LARGE for it: {'; '.join(f'{name} ({reason})' for name, reason in over.items())}."


def _facts(one: Needs) -> list[str]:
    """Sentences on activations, on loading, on the number of devices."""
    facts = []
    if (kept := one.activations) is not None:
        key = "student.model.gradient_checkpointing"
        with_it = f"{_short(kept.whole)} GiB without {key}, {_short(kept.recomputed)} with it"
        facts.append(f"Activations of a micro-batch in training: {with_it}.")
    if one.host:
        facts.append(
            f"Before they are divided, the models are loaded whole by each process: {_short(one.host)} GiB of memory "
            "of each machine."
        )
    if not one.layout.counted:
        facts.append(f"{UNCOUNTED}; {REMEDY}.")
    return facts


def _gib(size: int) -> Cell:
    return Cell("–") if not size else Cell.number(size / 2**30, _short(size))


def _short(size: int) -> str:
    return f"{size / 2**30:.2f}" if size < 100 * 2**30 else f"{size / 2**30:.0f}"
