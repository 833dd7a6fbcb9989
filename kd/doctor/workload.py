"""The work of a run that is not built: its networks, laid out without weights, and the sizes of its steps."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from kd.composition.groups import responses_each
from kd.composition.interfaces import made_by
from kd.composition.requirements import demands
from kd.composition.sections import prepared_roles
from kd.data.rows import Encoded
from kd.data.sequences import collate
from kd.doctor.gpus import Gpu
from kd.doctor.layout import Layout
from kd.doctor.memory import largest
from kd.doctor.shards import autocast
from kd.models.outlines import Outline, networks_in, outline
from kd.signals import of_role

Config = Mapping[str, Any]
STEP = ("objective", "rollout", "reward")  # groups with demands that are met at each step
DTYPES = {"bf16-true": "bfloat16", "64-true": "float64"}  # of the student, by precision; else that of its config


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


@lru_cache(maxsize=32)
def _outline(node: str) -> Outline:
    return outline(json.loads(node))


def laid_out(node: Config) -> Outline:
    """The outline of a network's node, made once in a process."""
    return _outline(json.dumps(node, sort_keys=True))


@dataclass(frozen=True)
class Written:
    """Responses that a stage of an augmentation has a model generate.

    Attributes:
        stage, role: the stage's name; `teacher` or `student`.
        model: the model that generates.
        samples: responses to a prompt.
        batch: responses that are generated at a time.
        response: tokens of each, at most.
        generator: the config of the engine; None: our own.
    """

    stage: str
    role: str
    model: Outline
    samples: int
    batch: int
    response: int
    generator: Config | None = None


class Workload:
    """One resolved config.

    Attributes:
        student, teachers: networks; `own`: the teacher is made of the student.
        by_student, by_teacher: whether the rollout has that model generate.
        samples: responses to a prompt that the rollout generates. uses: steps that learn from the same ones.
        length, response: tokens of a record, and of its response.
        window, rows: records and responses of a step, on all devices.
        batch: responses that a rollout generates at a time. generator: the config of what generates them, engine: its
            class; engine_share: of the GPU's memory, where it has one of its own.
        asks_teacher: whether the rollout or its reward reads the teacher.
        student_fields: outputs of the student that the objective reads.
        load: the largest micro-batch of a device.

    Raises ValueError for a model of an architecture that is not known here.
    """

    def __init__(self, config: Config, assumed: Assumed):
        self.config, self.assumed = config, assumed
        self.layout = Layout.of(config["trainer"])
        self.precision = str(config["trainer"].get("precision", "32-true"))
        node = next(networks_in(config["student"]["model"]))
        self.node = {**node, "dtype": DTYPES.get(self.precision, node.get("dtype", "float32"))}
        self.student = laid_out(self.node)
        self.own = _follows_student(config["teacher"])
        networks = [laid_out(node) for node in networks_in(config["teacher"])]
        self.teachers = [self.student] if self.own else networks
        self.reads_teacher = _reads_teacher(config) and not config["targets"]["cached"]
        self.asks_teacher = any("teacher" in name for name in _demanded(config, "rollout", "reward"))
        self.student_fields = of_role("student", _demanded(config, "objective"))
        self._read_rollout(config["rollout"])
        self.length = min(assumed.length or config["data"]["max_length"], config["data"]["max_length"])
        most = [node["max_new_tokens"] for node in _chain(config["rollout"]) if node.get("max_new_tokens")]
        self.response = max(1, min([self.length // 2, *(most if self.by_student or self.by_teacher else ())]))
        self.window = config["optim"]["window"]
        self.rows = self.window * (_responses(config["rollout"]) or self.samples)
        self.sequence = collate([Encoded((0,) * (self.length + 1), self.length + 1 - self.response)], pad=0)
        records = -(-self.window // self.layout.devices)
        self.load = largest(self.length, self.rows // self.window, records, config["data"]["max_tokens"])

    def _read_rollout(self, rollout: Config) -> None:
        chain = list(_chain(rollout))
        writer = made_by(f"rollout{'.writer' * (len(chain) - 1)}", chain[-1])  # the others wrap it
        self.by_teacher = "teacher" in writer.requires
        sides = writer.sides(chain[-1], None)
        self.by_student = not writer.keeps_responses and (sides is None or "student" in sides)
        self.samples = max(int(node.get("samples") or 1) for node in chain)
        replayed = chain[0].get("uses") if chain[0].get("max_age") is None else None
        self.uses = int(replayed or 1)
        self.batch = max(int(node.get("batch_size") or 16) for node in chain)
        self.generator: Config = next((node["generator"] for node in chain if node.get("generator")), {})
        self.engine = engine_of(self.generator)
        self.engine_share = float(self.generator.get("memory") or 0.0)

    @property
    def writers(self) -> list[Outline]:
        """The models that generate in the rollout."""
        return [self.student] * self.by_student + self.teachers * self.by_teacher

    @property
    def held(self) -> list[Outline]:
        """The teachers that are loaded beside the student."""
        return [] if self.own or self.config["targets"]["cached"] else self.teachers

    def autocast(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which a network of that type computes in training."""
        return autocast(self.precision, dtype)

    def elicited(self) -> Iterator[Written]:
        """The responses that the stages of the augmentation have models generate."""
        for name, node in (self.config["augmentation"]["stages"] or {}).items():
            names = made_by(f"augmentation.stages.{name}", node).requires
            samples, batch = int(node.get("samples") or 1), int(node.get("batch_size") or 16)
            response = max(1, min(self.length // 2, node.get("max_new_tokens") or self.length))
            models = [("teacher", one) for one in self.teachers * ("teacher" in names)]
            for role, model in [*models, *[("student", self.student)] * ("student" in names)]:
                yield Written(name, role, model, samples, batch, response, node.get("generator"))

    def preparations(self) -> Iterator[tuple[str, Config, Outline]]:
        """Role, recipe and network of each model that is tuned first: all of its weights, on one device."""
        for role, node in prepared_roles(self.config).items():
            recipe = node.get("prepare")
            if recipe:
                model = next(networks_in(node["model"]))
                yield role, recipe, laid_out({**model, "lora": None})


def _reads_teacher(config: Config) -> bool:
    """Return whether each step reads outputs of the teacher; text that it generates is counted apart."""
    return any(name.startswith(("teacher_", "native_teacher_")) for name in _demanded(config, *STEP))


def _demanded(config: Config, *groups: str) -> frozenset[str]:
    """The signals that the components of these groups require."""
    return frozenset[str]().union(*(names for group, _, names in demands(config) if group in groups))


def engine_of(generator: Config | None) -> str:
    """The class of a generator's config."""
    return str((generator or {}).get("_target_", "Torch")).rpartition(".")[2]


def _follows_student(teacher: Config) -> bool:
    """Return whether the teacher is made of the student."""
    return teacher.get("_target_") is not None and made_by("teacher", teacher).follows_student


def _responses(rollout: Config) -> int | None:
    """The responses to a prompt that are learnt on; of a rollout whose number varies, those of its writer."""
    found = responses_each("rollout", rollout)
    return responses_each("rollout.writer", rollout["writer"]) if found is None and rollout.get("writer") else found


def _chain(node: Config) -> Iterator[Config]:
    """A rollout's node, its writer's, and so on."""
    while isinstance(node, Mapping):
        yield node
        node = node.get("writer")  # type: ignore[assignment]
