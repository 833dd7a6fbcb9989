"""Methods as their files compose them: what these tests instantiate, so that a wrong number in yaml shows."""

from functools import cache
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from kd.components.choices import CONF, axes
from kd.data.sequences import Encoder
from kd.kernels.logits import label_logprobs
from kd.schedules import Schedule
from kd.types import WRITERS, Models, Progress
from tests.objectives.cases import logits_of

REFERENCE, TEACHER, STUDENT = (torch.tensor([WRITERS.index(name)]) for name in ("reference", "teacher", "student"))
P, Q = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)  # of the teacher and of the student, over three ids


def pair(method: str) -> list[str]:
    """The tiny pair, or the student alone where the method brings its own teacher."""
    teacher = [] if "teacher" in axes("method", method, CONF) else ["teacher=tiny"]
    return [*teacher, "student=tiny", "skill=spell_backward"]


@cache
def point(method: str, *overrides: str) -> DictConfig:
    """The composed config of a method on the tiny pair."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=[f"method={method}", *pair(method), *overrides])


def term(method: str, name: str, *overrides: str) -> Any:
    """A term's loss, with the method's own hyperparameters."""
    return instantiate(point(method, *overrides).objective[name].loss, _convert_="all")


def weight(method: str, name: str, now: Progress | None = None) -> float:
    """Of a term, at a moment if it changes."""
    given: Any = point(method).objective[name].weight
    return Schedule.of(given)(now) if isinstance(given, DictConfig) else given


def rollout(method: str, *overrides: str) -> Any:
    """Its rollout."""
    return instantiate(point(method, *overrides).rollout, _convert_="all")


def reward(method: str, **changes: Any) -> Any:
    """Its reward."""
    return instantiate(point(method).reward, _convert_="all", **changes)


def on_three_ids(method: str, name: str, *overrides: str, p=P, q=Q, **signals: Any) -> float:
    """The value of a row-wise divergence of the method at one position."""
    return term(method, name, *overrides)(logits_of(q), logits_of(p), **signals).item()


def logprobs(distribution, ids: list[int]) -> torch.Tensor:
    """log of the probabilities of `ids`, each under the same distribution."""
    return label_logprobs(logits_of(*[distribution] * len(ids)), torch.tensor(ids))


def encoder(model: Any) -> Encoder:
    """For its tokenizer, with room for all that these tests write."""
    return Encoder(model.tokenizer, None, max_length=200, max_tokens=10_000)


def at(step: int, total: int = 10) -> Progress:
    """`step` optimizer steps are done."""
    return Progress(step, total)


def written(writer: Any, models: Models, records: list, now: Progress) -> list:
    """What a rollout makes of records."""
    made = encoder(models.student)
    return writer(made.batches(records), models, now, made)
