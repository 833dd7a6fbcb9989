"""Checks that the objective has a meaning on the kept part of the teacher's output.

A term is tried on a few random rows, so the answer holds for terms and hyperparameters that are not listed here.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kd.components.instantiation import instantiate
from kd.components.signatures import located, shown
from kd.composition.interfaces import made_by
from kd.composition.requirements import demands
from kd.seeding import seeded
from kd.signals import is_row_wise, of_role, requires, separated
from kd.teachers.targets import Targets, TopK
from kd.types import WRITERS, Progress

Node = Mapping[str, Any]

ROWS, IDS = 32, 7  # of the trial
FREE = frozenset(  # not over the ids
    {"progress", "written_by", "student_logprobs", "student_mean_logprobs", "reference_logprobs", "behaviour_logprobs"}
)


def check_targets(config: Node) -> None:
    """Raises ValueError, with reason and remedy, for targets that the rest of the run cannot use."""
    node = config["targets"]
    if not isinstance(node.get("cached", False), bool):
        raise ValueError(f"targets.cached={shown(node['cached'])}: give true or false")
    if _lists(config["teacher"]):
        _check_listing(config)
    if node.get("_target_") is None:
        if node.get("cached"):
            raise ValueError(
                "targets.cached=true, but targets=full keeps nothing that could be cached; "
                "choose targets=topk, sampled or hidden"
            )
        return
    targets: Targets = kept(node)
    if config["teacher"].get("_target_") is None:
        raise ValueError(
            f"targets {type(targets).__name__} keeps a part of a teacher's output, but teacher=none; "
            "choose a teacher, or targets=full"
        )
    if made_by("teacher", config["teacher"]).follows_student:
        raise ValueError(
            f"targets {type(targets).__name__} keeps a part of a teacher's output, but the student's own teacher "
            "changes with it; take targets=full"
        )
    if config["teacher"].get("members"):
        _check_ensemble(config["teacher"], targets, bool(node.get("cached")))
    if node.get("cached"):
        _check_cached(config)
    if targets.rule is not None:
        _check_alignment(config, targets)
        _check_sparse(config, targets)


def kept(node: Node) -> Any:
    """The object of the group `targets`."""
    return instantiate({key: value for key, value in node.items() if key not in ("cached", "audit")})


def _lists(teacher: Node) -> bool:
    """Return whether the teacher's logits are those of some ids; of one that has none, the missing signal is named."""
    made = None if teacher.get("_target_") is None else made_by("teacher", teacher)
    return made is not None and made.lists_targets and "logits" in made.provided(teacher)


def _check_ensemble(teacher: Node, targets: Targets, cached: bool) -> None:
    if cached:
        raise ValueError("targets.cached=true, but a cache holds one teacher, no ensemble; set targets.cached=false")
    if teacher["combine"] == "routed" or targets.rule is None:
        raise ValueError(
            f"targets {type(targets).__name__} cannot be kept of an ensemble with "
            f"teacher.combine={teacher['combine']}; "
            "take targets=full, or, where members are averaged, targets=topk or sampled"
        )


def _check_listing(config: Node) -> None:
    """Refuse whole distributions, an audit and a temperature of a teacher that lists the likeliest ids alone."""
    name, node = made_by("teacher", config["teacher"]).__name__, config["targets"]
    reads = [part for _, part, names in demands(config) if "logits" in _of_teacher(names)]
    if not reads:
        return
    if node.get("_target_") is None or not isinstance(kept(node), TopK):
        raise ValueError(
            f"{reads[0]} reads the whole distribution of the teacher, but teacher {name} lists the likeliest ids of "
            "each position; take targets=topk targets.audit=null"
        )
    if (node.get("audit") or {}).get("every") is not None:
        raise ValueError(
            f"targets.audit compares with the whole distribution, which teacher {name} does not have; set "
            "targets.audit=null"
        )
    if node["temperature"] != 1:
        raise ValueError(
            f"targets.temperature={node['temperature']}: teacher {name} lists probabilities at temperature 1, and a "
            "tail cannot be heated; set temperature=1.0"
        )


def _check_cached(config: Node) -> None:
    rollout = made_by("rollout", config["rollout"])
    if not rollout.keeps_responses:
        raise ValueError(
            f"targets.cached=true, but rollout {rollout.__qualname__} generates responses that no cache has; "
            "take rollout=offline, or targets.cached=false"
        )
    for group, part, names in demands(config):
        required = sorted((of_role("teacher", names) | of_role("native_teacher", names)) - {"logits"})
        if required:
            raise ValueError(
                f"{part} needs the teacher's {', '.join(required)}, but a cache holds its logits only; "
                "set targets.cached=false"
            )
        if group == "checkpoint":
            raise ValueError(
                f"{part} needs the teacher on the validation split, but targets.cached=true reads the "
                f"training split's targets only; take {part.partition('=')[0]}=validation/bits_per_byte"
            )


def same_rows(config: Node) -> bool:
    """Return whether the alignment leaves the teacher's rows and ids as they are."""
    alignment = made_by("alignment", config["alignment"])
    return not alignment.translates and "logits" in alignment.provides


def asks_teacher(config: Node) -> bool:
    """Return whether the run reads any output of the teacher, or its text."""
    return any("teacher" in names or _of_teacher(names) for _, _, names in demands(config))


def _check_alignment(config: Node, targets: Targets) -> None:
    if same_rows(config):
        return
    alignment = made_by("alignment", config["alignment"])
    maps = "logits" in alignment.provides
    reason = "needs the teacher's whole vocabulary" if maps else "brings no logits to the student's tokens"
    raise ValueError(
        f"alignment {alignment.__qualname__} {reason}, but targets {type(targets).__name__} keeps some ids; "
        "take alignment=same, or targets=full or hidden"
    )


def _check_sparse(config: Node, targets: Targets) -> None:
    terms = {}
    for name, node in config["objective"].items():
        with seeded(0, "trial"):
            terms[name] = instantiate(node["loss"], _convert_="all")
    required = {name: _of_teacher(requires(term)) for name, term in terms.items()}
    if any(required.values()) and not any("logits" in fields for fields in required.values()):
        fields = frozenset[str]().union(*required.values())
        raise ValueError(
            f"{' and '.join(name for name in required if required[name])} reads {', '.join(sorted(fields))} of the "
            f"teacher, but targets {type(targets).__name__} keeps its logits, which no term reads; take targets=full"
        )
    for name in (name for name in terms if "logits" in required[name]):
        _check_signals(name, terms[name])
        _check_temperature(name, config["objective"][name]["loss"], targets)
        _check_rule(name, terms[name], targets)


def _of_teacher(names: frozenset[str]) -> frozenset[str]:
    return of_role("teacher", names) | of_role("native_teacher", names)


def _check_signals(name: str, term: Callable) -> None:
    if not is_row_wise(term):
        raise ValueError(
            f"{name} is no sum over positions (or has parameters of its own), so it needs the teacher's whole "
            "vocabulary; take targets=full or hidden"
        )
    on_ids = sorted(n for n in requires(term) - FREE if not n.endswith("_logits"))
    if on_ids:
        raise ValueError(
            f"{name} also needs {', '.join(on_ids)}, and a label need not be among the ids that are kept of the "
            "teacher; take targets=full or hidden"
        )


def _check_temperature(name: str, loss: Node, targets: Targets) -> None:
    parameter = signature(located(f"objective.{name}.loss", loss["_target_"])).parameters.get("temperature")
    temperature = 1.0 if parameter is None else loss.get("temperature", parameter.default)
    if temperature != targets.temperature:
        remedy = "set targets.temperature=1.0" if parameter is None else "set both, with temperature=..."
        raise ValueError(
            f"{name} compares distributions of temperature {temperature}, but targets.temperature="
            f"{targets.temperature}, and a tail cannot be heated afterwards; {remedy}"
        )


def _check_rule(name: str, term: Callable, targets: Targets) -> None:
    if targets.rule == "renormalise" and not bears_zeros(term):
        raise ValueError(
            f"{name} has no meaning with targets.tail=renormalise: it has no bound where the teacher's probability "
            "is zero, as it is outside the kept ids; take targets.tail=tail_bucket"
        )
    if targets.rule in ("zero", "sampled") and not _is_forward_kl(term, targets.temperature):
        reason = (
            "targets.tail=zero: probabilities that do not sum to 1 have a forward KL (a cross-entropy), but no other "
            "divergence; take objective=fkl, or targets.tail=tail_bucket"
            if targets.rule == "zero"
            else "targets=sampled: only forward KL is linear in the teacher's probabilities, so that of any other "
            "term a sample gives a biased value and gradient; take objective=fkl, or targets=topk"
        )
        raise ValueError(f"{name} has no meaning with {reason}")


def bears_zeros(term: Callable) -> bool:
    """Return whether value and gradient stay the same wherever the zeros of the teacher are floored."""
    results = []
    for floor in (-60.0, -90.0):
        student, teacher = _drawn()
        teacher[:, -1] = floor
        results.append(torch.cat([x.flatten() for x in _tried(term, student, teacher)]))
    return torch.allclose(results[0], results[1], rtol=1e-6, atol=1e-6)


def _is_forward_kl(term: Callable, temperature: float) -> bool:
    """Return whether its gradient is c (q - p) on every row, with one c."""
    student, teacher = _drawn()
    _, gradient = _tried(term, student, teacher)
    expected = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    factor = (gradient * expected).sum() / expected.square().sum()
    return bool(factor != 0) and torch.allclose(gradient, factor * expected, rtol=1e-5, atol=1e-8)


def _drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(ROWS, IDS, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def _tried(term: Callable, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum with respect to the student's logits."""
    student = student.requires_grad_()
    given: dict[str, Any] = {name: torch.zeros(ROWS, dtype=torch.float64) for name in FREE}
    given |= {
        "progress": Progress(1, 2),
        "written_by": torch.arange(ROWS) % len(WRITERS),
        "student_logits": student,
        "reference_logits": student.detach(),
    }
    given |= {"teacher_logits": teacher, "native_teacher_logits": teacher}
    with torch.enable_grad():
        value, _ = separated(term(**{name: given[name] for name in requires(term)}))
        if not value.requires_grad:
            return value, torch.zeros_like(student)
        return value.detach(), torch.autograd.grad(value.sum(), student)[0]
