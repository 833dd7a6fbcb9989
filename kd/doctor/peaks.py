"""The memory of a built run by phase, and whether the largest fits (docs/doctor.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from torch import nn

from kd.doctor.layout import REMEDY, UNCOUNTED
from kd.doctor.memory import Item, estimate, mib, models, peak
from kd.doctor.room import layout_of, on_gpu
from kd.doctor.shards import narrowed, stored
from kd.experiment.build import placed
from kd.experiment.checks import Subject
from kd.experiment.findings import Finding
from kd.models.language_model import LanguageModel
from kd.training.sharding import read_whole

Phases = Mapping[str, Sequence[Item]]

PHASES = {  # beside training, and how they are counted
    "load": "whole models of each process, before they are divided",
    "evaluate": "whole student and teacher on the first device",
    "generate": "models that generate or score, whole beside the parts and moments",
}
KEPT = ("student", "terms", "AdamW", "teacher", "own teacher", "reference", "whole models")  # between two steps
OF_TOKENS = ("activations", "head", "whole logits", "frozen layer", "frozen features")


def phases(subject: Subject) -> dict[str, list[Item]]:
    """What a process holds in each phase, in the order of the run.

    Beside `train`, those that hold models whole which training divides, or keeps in host memory.
    """
    train, layout = estimate(subject), layout_of(subject.cfg)
    if not (layout.sharded or layout.offloads):
        return {"train": train}
    found = {
        "load": [] if on_gpu(subject.cfg) else _loaded(subject),
        "evaluate": _evaluated(subject) if placed(subject.cfg) else [],
        "generate": _generating(subject, train) if layout.teacher > 1 else [],
        "train": train,
    }
    return {name: items for name, items in found.items() if items}


def _loaded(subject: Subject) -> list[Item]:
    """Of a process on a CPU."""
    terms = Item("terms", stored(subject.parts.module.stateful), "weights and buffers of the objective")
    return [Item("all models", stored(models(subject)), "whole"), *([terms] if terms.size else [])]


def _evaluated(subject: Subject) -> list[Item]:
    """Of the first process, before training and after it."""
    whole = {"student": subject.parts.module.student, "teacher": subject.parts.teacher}
    return [Item(name, stored(one), "whole", once=True) for name, one in whole.items() if one is not None]


def _generating(subject: Subject, train: Sequence[Item]) -> list[Item]:
    """Between two steps, while a rollout generates and its reward scores, or the student is scored at a validation."""
    module, cfg = subject.parts.module, subject.cfg
    roles = read_whole(module.rollout, module.models.reward) or ["student"] * bool(cfg.checkpoint.answers)
    read: dict[LanguageModel, str] = {}  # a live teacher is the student
    for role in roles:
        read = dict.fromkeys(_networks(getattr(module.models, role)), role) | read
    whole = {role: 0 for role in roles}
    for model, role in read.items():
        whole[role] += narrowed(model, cfg.trainer.precision, stored(model))
    gathered = [Item(f"whole {role}", size, "gathered") for role, size in whole.items() if size]
    return [*(item for item in train if item.name in KEPT), *gathered] if gathered else []


def _networks(part: Any) -> list[LanguageModel]:
    modules = part.modules() if isinstance(part, nn.Module) else []
    return [module for module in modules if isinstance(module, LanguageModel)]


def check_devices(cfg: DictConfig) -> list[Finding]:
    """A finding where the number of devices is another machine's."""
    known = layout_of(cfg).counted or cfg.trainer.accelerator == "cpu"  # without a number, one process
    return [] if known else [Finding("WARN", "devices", UNCOUNTED, REMEDY)]


def check_room(found: Phases, room: int, subject: Subject) -> Finding:
    """Check that the largest phase fits the memory that was free before anything was loaded."""
    share = 1 if on_gpu(subject.cfg) else layout_of(subject.cfg).here
    needs = {name: _together(items, share) for name, items in found.items()}
    phase = max(needs, key=lambda name: needs[name])
    need, items = needs[phase], [item for item in found[phase] if item.held]
    fact = f"about {mib(need)} of {mib(room)} available"
    fact += f" in the phase {phase}" if len(found) > 1 else ""
    fact += f", on {share} ranks together" if share > 1 else ""
    if need <= 0.8 * room:
        return Finding("PASS", "memory", fact)
    largest = max(items, key=lambda item: item.size).name
    remedy = f"most of it is {largest}: {_remedy(phase, largest)}"
    return Finding("FAIL" if need > room else "WARN", "memory", fact, remedy)


def _together(items: Sequence[Item], share: int) -> int:
    """Bytes of the processes that share the memory."""
    return peak(items) + (share - 1) * sum(item.size for item in items if item.held and not item.once)


def _remedy(phase: str, largest: str) -> str:
    if phase == "load":
        return "fewer processes (trainer.devices), each of which loads them, or smaller models"
    if phase == "evaluate":
        return "evaluation=none, and evaluate the exported student by itself (docs/scale.md)"
    if largest in ("teacher", "whole teacher"):
        return "a smaller teacher"
    if largest in OF_TOKENS:
        return "lower data.max_tokens"
    return "fewer trained weights (student=lora) or a smaller student" if phase == "train" else "a smaller student"
