"""Checks that teacher, student, alignment and objective fit one another, from configurations and tokenizers alone.

Models are laid out on the device "meta", where tensors have shapes and nothing else: no weight is read.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd.components.axes import AXES
from kd.components.instantiation import calls, instantiate
from kd.composition.interfaces import interface_of, made_by
from kd.composition.targets import bears_zeros
from kd.experiment.identity import content_digests, load_skill, sources
from kd.generators import Generator
from kd.models.language_model import LanguageModel
from kd.models.merging import check_mergeable
from kd.seeding import seeded
from kd.signals import hook, introduce, requires, sized
from kd.sources.addresses import model_folder
from kd.training.sharding import NAME as SHARDED

LOGITS = frozenset({"student_logits", "teacher_logits", "progress"})
OURS = ("kd.models.", "kd.teachers.")  # modules whose targets are instantiated from configurations alone


def check_models(cfg: DictConfig) -> None:
    """Raises ValueError for tokenizers that the alignment cannot serve, or a term that does not fit the models.

    Components from outside `kd` are checked when the run is built, and so are cached targets, which stand for a teacher
    that need not be at hand.
    """
    nodes = [cfg.student.model, cfg.teacher]
    if images := load_skill(cfg.skill).images:
        check_images(cfg)
    if cfg.get("targets", {}).get("cached") or not all(is_ours(node) for node in nodes):
        return
    losses = {str(name): instantiate(node.loss, _convert_="all") for name, node in cfg.objective.items()}
    contents: Any = [OmegaConf.to_container(node, resolve=True) for node in nodes]
    student, teacher = laid_out(contents[0]), laid_out(described(contents[1]))
    if teacher is not None and not isinstance(teacher, nn.Module):
        teacher = None  # a server's: there is nothing to compare with
    if images:
        check_readers(cfg.skill._target_, {"student": student, "teacher": teacher})
    check_mergeable(student)
    check_positions(cfg.data.max_length, {"student": student, "teacher": teacher})
    if teacher is not None:
        teacher.bind(student)
        alignment = instantiate(cfg.alignment)
        alignment.check(student.tokenizer, teacher.tokenizer, (student.vocabulary, teacher.vocabulary))
        check_zeros(alignment, losses)
    for name, loss in losses.items():
        if sized(loss) and hook(loss, "starts_from") is None:  # that copies weights
            with seeded(0, "objective", name):
                introduce(loss, student, teacher)


def check_images(cfg: DictConfig) -> None:
    """Raises ValueError for a component of a config that leaves out the images of its skill's prompts."""
    if cfg.trainer.strategy == SHARDED:
        raise ValueError(
            f"trainer.strategy={SHARDED} shards the tower that reads images, for which a rank whose prompts have none "
            "would keep the others waiting; take trainer=ddp"
        )
    if cfg.get("targets", {}).get("cached"):
        raise ValueError(
            "targets.cached=true keeps targets by the ids of texts, which the images of the skill's prompts are not "
            "part of; take targets.cached=false"
        )
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for path, node in calls("", plain):
        if interface_of(path) is Generator and not (engine := made_by(path, node)).reads_images:
            raise ValueError(
                f"{path}: {engine.__name__} passes on no images, which the skill's prompts have; take generator=torch "
                "or generator=transformers"
            )


def check_readers(skill: str, models: Mapping[str, Any]) -> None:
    """Raises ValueError for a model of text alone where the skill's prompts have images.

    models: by role; None and a teacher that is made of the student have none of their own.
    """
    for role, model in models.items():
        for part in (part for part in model.modules() if isinstance(part, LanguageModel)) if model else ():
            if part.vision is None:
                raise ValueError(
                    f"the prompts of skill {skill.rpartition('.')[2]} have images, which the {role} "
                    f"({type(part.network).__name__}) does not read; take {role}=images/tiny, or {role}=pretrained "
                    "with a vision-language checkpoint"
                )


def check_positions(max_length: int, models: Mapping[str, Any]) -> None:
    """Raises ValueError if a record of `max_length` tokens could be longer than the positions of a model.

    models: by role; None and a teacher that is made of the student have none of their own.
    """
    for role, model in models.items():
        for network in (part.network for part in model.modules() if isinstance(part, LanguageModel)) if model else ():
            positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
            if positions is not None and max_length > positions:
                raise ValueError(
                    f"data.max_length={max_length} is more than the {positions} positions of the {role} "
                    f"({type(network).__name__}); set data.max_length={positions}, or take a {role} with more"
                )


def check_zeros(alignment: Any, losses: Mapping[str, Any]) -> None:
    """Raises ValueError for a term without a bound at ids of the student for which an alignment finds none."""
    if not alignment.translates or not (count := alignment.forbidden()):
        return
    for name, loss in losses.items():
        if requires(loss) <= LOGITS and "teacher_logits" in requires(loss) and not bears_zeros(loss):
            raise ValueError(
                f"{name} has no bound where the teacher's probability is zero, and {type(alignment).__name__} finds no "
                f"teacher's id for {count} of the student's {alignment.size}; take alignment.outside=spread, or a term "
                f"with a bound (fkl, jsd, skew_rkl) instead of {name}"
            )


def described(teacher: dict[str, Any]) -> dict[str, Any]:
    """A teacher's node without the keys that are for the run, in the members of an ensemble too."""
    kept = {key: value for key, value in teacher.items() if key not in AXES["teacher"].beside}
    if "members" in kept:
        kept["members"] = {name: described(member) for name, member in kept["members"].items()}
    return kept


def is_ours(node: Any) -> bool:
    """Return whether every target below is one of `kd.models` or `kd.teachers`."""
    if not isinstance(node, Mapping):
        return True
    own = node.get("_target_")
    return (own is None or own.startswith(OURS)) and all(is_ours(child) for child in node.values())


def laid_out(content: Mapping[str, Any]) -> Any:
    """The model of a node's content without its weights, made once in a process while its files stay the same."""
    return _outline(json.dumps(content, sort_keys=True), json.dumps(content_digests(content)))


@lru_cache(maxsize=8)
def _outline(node: str, files: str) -> Any:
    """The model of a config node without its weights; None where there is none.

    Its sources are fetched and converted before, by ordinary means: a conversion reads weights.
    """
    content = json.loads(node)
    if content.get("_target_") is None:
        return None
    for source in sources(content):
        model_folder(**source)
    with torch.device("meta"):
        return instantiate(content, _convert_="all")
