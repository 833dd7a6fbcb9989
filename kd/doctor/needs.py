"""The needs of a run that is not built: parameters, tokens, FLOPs, memory and hours, from its config alone.

Networks are laid out without weights (`kd.models.outlines`), and neither data nor tokenizers are read, so that lengths
are assumed: each record fills `length` tokens, half of them its response, or as many as the rollout generates at most.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kd.composition.groups import responses_each
from kd.composition.interfaces import made_by
from kd.composition.requirements import demands
from kd.composition.sections import Prepare, learning_processes
from kd.data.rows import Encoded
from kd.data.sequences import collate
from kd.doctor.gpus import Gpu
from kd.doctor.memory import LIVE_LAYER, Load, activations, head_pass, stored, widest
from kd.models.flops import decoding_flops, reading_flops, training_flops
from kd.models.outlines import Outline, networks_in, outline

Config = Mapping[str, Any]
STEP = ("objective", "rollout", "reward")  # groups with demands that are met at each step
HALF = 2  # bytes of a number in bfloat16


@dataclass(frozen=True)
class Assumed:
    """The assumptions of an estimate.

    Attributes:
        gpu: on which the run would be.
        utilisation: the share of the GPU's peak that is reached, of FLOP/s and of bandwidth.
        length: tokens of prompt and response; None: data.max_length, the most there can be.
    """

    gpu: Gpu
    utilisation: float = 0.4
    length: int | None = None


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
    preparation: float = 0.0  # hours, once for all jobs of the same recipe
    recipes: Mapping[str, float] = field(default_factory=dict)  # hours of each recipe

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes most."""
        return max(sum(parts.values()) for parts in self.memory.values())


@lru_cache(maxsize=32)
def _outline(node: str) -> Outline:
    return outline(json.loads(node))


def laid_out(node: Config) -> Outline:
    """The outline of a network's node, made once in a process."""
    return _outline(json.dumps(node, sort_keys=True))


def needs(config: Config, assumed: Assumed) -> Needs:
    """The needs of a resolved config.

    Raises ValueError for a model of an architecture that is not known here.
    """
    return _Job(config, assumed).needs()


class _Job:
    """One config, with its networks laid out."""

    def __init__(self, config: Config, assumed: Assumed):
        self.config, self.assumed = config, assumed
        self.student = laid_out(next(networks_in(config["student"]["model"])))
        self.own = _follows_student(config["teacher"])
        networks = [laid_out(node) for node in networks_in(config["teacher"])]
        self.teachers = [self.student] if self.own else networks
        self.reads_teacher = _reads_teacher(config) and not config["targets"]["cached"]
        chain = list(_chain(config["rollout"]))
        writer = made_by(f"rollout{'.writer' * (len(chain) - 1)}", chain[-1])  # the others wrap it
        self.by_teacher = "teacher" in writer.requires
        sides = writer.sides(chain[-1], None)
        self.by_student = not writer.keeps_responses and (sides is None or "student" in sides)
        self.samples = max(int(node.get("samples") or 1) for node in chain)
        replayed = chain[0].get("uses") if chain[0].get("max_age") is None else None
        self.uses = int(replayed or 1)  # steps that learn from the same responses
        self.length = min(assumed.length or config["data"]["max_length"], config["data"]["max_length"])
        most = [node["max_new_tokens"] for node in chain if node.get("max_new_tokens")]
        self.response = max(1, min([self.length // 2, *(most if self.by_student or self.by_teacher else ())]))
        self.window = config["optim"]["window"]
        self.rows = self.window * (_responses(config["rollout"]) or self.samples)
        self.devices = _devices(config["trainer"])
        self.sequence = collate([Encoded((0,) * (self.length + 1), self.length + 1 - self.response)], pad=0)
        self.batch = max(int(node.get("batch_size") or 16) for node in chain)

    def needs(self) -> Needs:
        per_step = self._flops_of_a_step()
        steps = self._steps(per_step)
        flops = {kind: steps * value for kind, value in per_step.items()}
        flops["elicitation"], elicitation = self._elicitation(steps)
        recipes = self._recipes()
        return Needs(
            student=_count(self.student),
            trained=sum(p.numel() for p in self.student.parameters() if p.requires_grad),
            teacher=0 if self.own else sum(map(_count, self.teachers)),
            steps=steps,
            tokens=steps * self.rows * self.length,
            generated=round(steps * self._generated_tokens()),
            flops=flops,
            memory=self._memory(),
            hours=(steps * self._seconds(per_step) + elicitation) / 3600,
            devices=self.devices,
            preparation=sum(recipes.values(), start=0.0),
            recipes=recipes,
        )

    # --- FLOPs ---

    def _flops_of_a_step(self) -> dict[str, float]:
        reads = [reading_flops(one, self.sequence) for one in self.teachers if self.reads_teacher]
        return {
            "student": float(self.rows * training_flops(self.student, self.sequence)),
            "teacher": float(self.rows * sum(reads)),
            "generation": sum(map(self._written, self._writers())),
        }

    def _writers(self) -> list[Outline]:
        """The models that generate in the rollout."""
        return [self.student] * self.by_student + self.teachers * self.by_teacher

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
        for name, node in (self.config["augmentation"]["stages"] or {}).items():
            names = made_by(f"augmentation.stages.{name}", node).requires
            samples, batch = int(node.get("samples") or 1), int(node.get("batch_size") or 16)
            response = max(1, min(self.length // 2, node.get("max_new_tokens") or self.length))
            for model in [*self.teachers * ("teacher" in names), *[self.student] * ("student" in names)]:
                own = float(records * _decoded(model, self.length - response, response, samples))
                read = math.ceil(records * samples / batch) * response * _bytes(model)
                flops, seconds = flops + own, seconds + max(own / self._speed(), read / self._bandwidth())
        return flops, seconds

    # --- time ---

    def _seconds(self, per_step: Mapping[str, float]) -> float:
        """Seconds of a step: training and reading are bound by FLOP/s, generation by that or by reading the weights."""
        speed = self._speed() * self.devices
        batches = math.ceil(self.window * self.samples / self.devices / self.batch) / self.uses
        reading = batches * self.response * sum(map(_bytes, self._writers())) / self._bandwidth()
        return (per_step["student"] + per_step["teacher"]) / speed + max(per_step["generation"] / speed, reading)

    def _bandwidth(self) -> float:
        """Bytes per second that one device reads."""
        return self.assumed.gpu.bandwidth * self.assumed.utilisation

    def _speed(self) -> float:
        """FLOP per second of one device."""
        precision = str(self.config["trainer"]["precision"])
        peak = self.assumed.gpu.bf16 if precision.startswith("bf16") else self.assumed.gpu.float32
        return peak * self.assumed.utilisation

    def _recipes(self) -> dict[str, float]:
        """Hours of each preparation, by its content: models are prepared once for all jobs."""
        found = {}
        for role, models in (("teacher", self.teachers[:1]), ("student", [self.student])):
            recipe = self.config[role].get("prepare")
            if recipe and models:
                each = training_flops(models[0], self.sequence) * recipe.get("window", Prepare.window)
                name = json.dumps([role, recipe, self.config[role]["model"], self.config["skill"]], sort_keys=True)
                found[name] = recipe["steps"] * each / self._speed() / 3600
        return found

    # --- memory ---

    def _memory(self) -> dict[str, dict[str, int]]:
        """Bytes on one device, by phase and part."""
        rows = max(1, min(self.config["data"]["max_tokens"] // self.length, -(-self.rows // self.devices)))
        load = Load(rows, self.length)
        trained = sum(p.numel() * p.element_size() for p in self.student.parameters() if p.requires_grad)
        teachers = [] if self.config["targets"]["cached"] else self.teachers
        copied = trained if self.config["teacher"].get("mode") != "live" else 0
        weights = {"student": stored(self.student), "teacher": copied if self.own else sum(map(stored, teachers))}
        state = {"gradients": trained, "AdamW": 2 * trained}
        working = max(
            (LIVE_LAYER * load.tokens * widest(one) * one.network.dtype.itemsize for one in teachers), default=0
        )
        training = {"activations": self._activations(load), "head": head_pass(self.student, load), "layer": working}
        found = {"training": {**weights, **state, **training}}
        if self.by_student or self.by_teacher:
            cache = sum(map(_cache, self._writers())) * min(self.batch, self.window * self.samples) * self.length
            found["generation"] = {**weights, "AdamW": 2 * trained, "cache": cache}
        return found

    def _activations(self, load: Load) -> int:
        """Bytes kept for the backward pass; under autocast in bfloat16, beside a copy of the weights."""
        precision = str(self.config["trainer"]["precision"])
        node = next(networks_in(self.config["student"]["model"]))
        mixed = precision == "bf16-mixed" and node.get("dtype", "float32") == "float32"
        counted = laid_out({**node, "dtype": "bfloat16"}) if mixed else self.student
        copies = HALF * _count(self.student) if mixed else 0
        return activations(counted, load, "32-true") + copies


def _reads_teacher(config: Config) -> bool:
    """Return whether each step reads outputs of the teacher; text that it generates is counted apart."""
    every = (names for group, _, names in demands(config) if group in STEP)
    return any(name.startswith(("teacher_", "native_teacher_")) for names in every for name in names)


def _follows_student(teacher: Config) -> bool:
    """Return whether the teacher is made of the student."""
    return teacher.get("_target_") is not None and made_by("teacher", teacher).follows_student


def _responses(rollout: Config) -> int | None:
    """The responses to a prompt that are learnt on; of a rollout whose number varies, those of its writer."""
    found = responses_each("rollout", rollout)
    return responses_each("rollout.writer", rollout["writer"]) if found is None and rollout.get("writer") else found


def _decoded(model: Outline, prompt: int, response: int, samples: int) -> int:
    """FLOPs of generating all responses to one prompt."""
    return decoding_flops(model, [prompt], [response] * samples, samples=samples)


def _chain(node: Config) -> Any:
    """A rollout's node, its writer's, and so on."""
    while isinstance(node, Mapping):
        yield node
        node = node.get("writer")  # type: ignore[assignment]


def _devices(trainer: Config) -> int:
    """Devices of all machines; where that depends on the machine, one."""
    return learning_processes(trainer) or 1


def _count(model: Outline) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: Outline) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _cache(model: Outline) -> int:
    """Bytes of keys and values of one token, in bfloat16."""
    config: Any = model.network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * HALF


def shown(assumed: Assumed, devices: int) -> str:
    """The GPU and the utilisation in words."""
    count = f"{devices} × " if devices > 1 else ""
    return f"{count}{assumed.gpu.name} at {assumed.utilisation:.0%} of its peak"
