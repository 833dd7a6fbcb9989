"""The needs of a run that is not built: parameters, tokens, FLOPs, memory and hours, from its config alone.

Networks are laid out without weights (`kd.models.outlines`), and neither data nor tokenizers are read, so that lengths
are assumed: each record fills `length` tokens, half of them its response, or as many as the rollout generates at most.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kd.composition.sections import Prepare, prepared_roles
from kd.doctor.layout import Layout
from kd.doctor.memory import Activations
from kd.doctor.phases import host_memory, kept_activations, memory_by_phase
from kd.doctor.remedies import remedy
from kd.doctor.workload import Assumed, Config, Workload
from kd.models.flops import decoding_flops, reading_flops, training_flops
from kd.models.outlines import Outline


@dataclass(frozen=True)
class Needs:
    """The needs of one job; preparation of models, validation and evaluation are left out.

    Attributes:
        student, trained, teacher: parameters; those that are trained, LoRA's alone where there is one.
        steps: optimizer steps, as many as `optim.steps` and the budget allow.
        tokens: of the student's training.
        generated: tokens that student and teacher generate.
        flops: by kind: student, teacher, generation, elicitation.
        memory: bytes on one device by phase and part.
        hours: on all devices of the run together side by side.
        devices: of the run.
        preparation, recipes: hours that count once for all jobs of the same recipe, in sum and by recipe.
        times: the hours by phase.
        layout: what is divided among the devices.
        activations: of a micro-batch, with and without gradient checkpointing.
        host: bytes of a machine's own memory that loading takes, where models are divided thereafter.
        remedies: by phase, the key that would lower it most.
    """

    student: int
    trained: int
    teacher: int
    steps: int
    tokens: int
    generated: int
    flops: Mapping[str, float]
    memory: Mapping[str, Mapping[str, int]]
    hours: float
    devices: int
    preparation: float = 0.0
    recipes: Mapping[str, float] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    activations: Activations | None = None
    host: int = 0
    remedies: Mapping[str, str] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes most."""
        return max(sum(parts.values()) for parts in self.memory.values())


def needs(config: Config, assumed: Assumed) -> Needs:
    """The needs of a resolved config.

    Raises ValueError for a model of an architecture that is not known here.
    """
    return _Job(config, assumed).needs()


class _Job(Workload):
    """One config, with its networks laid out."""

    def needs(self) -> Needs:
        per_step = self._flops_of_a_step()
        steps = self._steps(per_step)
        flops = {kind: steps * value for kind, value in per_step.items()}
        flops["elicitation"], elicitation = self._elicitation(steps)
        seconds = {"elicit": elicitation, "generate": steps * self._generating(per_step)}
        seconds["train"] = steps * self._learning(per_step)
        recipes, memory = self._recipes(), memory_by_phase(self)
        return Needs(
            student=_count(self.student),
            trained=sum(p.numel() for p in self.student.parameters() if p.requires_grad),
            teacher=0 if self.own else sum(map(_count, self.teachers)),
            steps=steps,
            tokens=steps * self.rows * self.length,
            generated=round(steps * self._generated_tokens()),
            flops=flops,
            memory=memory,
            hours=sum(seconds.values()) / 3600,
            devices=self.layout.devices,
            preparation=sum(recipes.values(), start=0.0),
            recipes={name: hours for (_, name), hours in recipes.items()},
            times={f"prepare {role}": hours for (role, _), hours in recipes.items()}
            | {phase: each / 3600 for phase, each in seconds.items()},
            layout=self.layout,
            activations=kept_activations(self),
            host=host_memory(self),
            remedies={phase: remedy(self, phase, parts) for phase, parts in memory.items()},
        )

    # --- FLOPs ---

    def _flops_of_a_step(self) -> dict[str, float]:
        reads = [reading_flops(one, self.sequence) for one in self.teachers if self.reads_teacher]
        return {
            "student": float(self.rows * training_flops(self.student, self.sequence)),
            "teacher": float(self.rows * sum(reads)),
            "generation": sum(map(self._written, self.writers)),
        }

    def _written(self, model: Outline) -> float:
        """FLOPs of a model for what the rollout generates, by step."""
        each = _decoded(model, self.length - self.response, self.response, self.samples)
        return self.window * each / self.uses

    def _generated_tokens(self) -> float:
        """Tokens that the rollout generates, by step; those that both models choose count once."""
        return self.window * self.samples * self.response * (self.by_student or self.by_teacher) / self.uses

    def _steps(self, per_step: Mapping[str, float]) -> int:
        """The steps to the first limit that is reached."""
        budget, steps = self.config["budget"], [self.config["optim"]["steps"]]
        written = self.window * self.samples * self.length / self.uses * self.by_teacher
        spent = {
            "student_flops": per_step["student"] + (self._written(self.student) if self.by_student else 0),
            "tokens": self.rows * self.length,
            "teacher_tokens": len(self.teachers) * (self.rows * self.length * self.reads_teacher + written),
            "generated_tokens": self._generated_tokens() * self.by_student,
            "seconds": self._seconds(per_step),
        }
        for name, each in spent.items():
            if budget.get(name) is not None and each:
                steps.append(math.ceil(budget[name] / each))
        return min(steps)

    def _elicitation(self, steps: int) -> tuple[float, float]:
        """FLOPs and seconds of the responses that stages have a model generate, for each record, on one device."""
        flops = seconds = 0.0
        known = self.config["skill"].get("train")
        records = known if isinstance(known, int) else steps * self.window
        for one in self.elicited():
            own = float(records * _decoded(one.model, self.length - one.response, one.response, one.samples))
            read = math.ceil(records * one.samples / one.batch) * one.response * _bytes(one.model)
            flops, seconds = flops + own, seconds + max(own / self._speed(), read / self._bandwidth())
        return flops, seconds

    # --- time ---

    def _seconds(self, per_step: Mapping[str, float]) -> float:
        """Seconds of a step."""
        return self._learning(per_step) + self._generating(per_step)

    def _learning(self, per_step: Mapping[str, float]) -> float:
        """Seconds of training and reading in a step, bound by FLOP/s; of layers that are recomputed, once more."""
        again = 0.0
        if self.node.get("gradient_checkpointing"):
            head = self.student.network.get_output_embeddings().weight.numel()
            again = self.rows * (reading_flops(self.student, self.sequence) - 2.0 * head * self.response)
        return (per_step["student"] + again + per_step["teacher"]) / (self._speed() * self.layout.devices)

    def _generating(self, per_step: Mapping[str, float]) -> float:
        """Seconds of generation in a step, bound by FLOP/s or by reading the weights for each token of a batch."""
        batches = math.ceil(self.window * self.samples / self.layout.devices / self.batch) / self.uses
        reading = batches * self.response * sum(map(_bytes, self.writers)) / self._bandwidth()
        return max(per_step["generation"] / (self._speed() * self.layout.devices), reading)

    def _bandwidth(self) -> float:
        """Bytes per second that one device reads."""
        return self.assumed.gpu.bandwidth * self.assumed.utilisation

    def _speed(self) -> float:
        """FLOP per second of one device."""
        half = self.precision.startswith(("bf16", "16"))
        peak = self.assumed.gpu.bf16 if half else self.assumed.gpu.float32
        return peak * self.assumed.utilisation

    def _recipes(self) -> dict[tuple[str, str], float]:
        """Hours of each preparation, by role and content: models are prepared once for all jobs."""
        found = {}
        for role, recipe, model in self.preparations():
            each = training_flops(model, self.sequence) * recipe.get("window", Prepare.window)
            node = prepared_roles(self.config)[role]["model"]
            name = json.dumps([role, recipe, node, self.config["skill"]], sort_keys=True)
            found[role, name] = recipe["steps"] * each / self._speed() / 3600
        return found


def _decoded(model: Outline, prompt: int, response: int, samples: int) -> int:
    """FLOPs of generating all responses to one prompt."""
    return decoding_flops(model, [prompt], [response] * samples, samples=samples)


def _count(model: Outline) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: Outline) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def shown(assumed: Assumed, devices: int) -> str:
    """The GPU and the utilisation in words."""
    count = f"{devices} × " if devices > 1 else ""
    return f"{count}{assumed.gpu.name} at {assumed.utilisation:.0%} of its peak"
