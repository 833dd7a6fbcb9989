"""The judges of a run: checked before anything is loaded, and loaded with the labels that they are held against.

Training does not import this module, so that another version of judging trains nothing again.
"""

import json
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.components.instantiation import instantiate
from kd.evaluation.items import generates
from kd.experiment.compatibility import described, is_ours, laid_out
from kd.experiment.identity import content_digests, load_skill, skill_node
from kd.experiment.loading import device, load_teacher, made
from kd.judges.judge import Judge
from kd.judges.judging import Judging, labelled_pairs
from kd.judges.models import prompt_node, teacher_node
from kd.metrics.table import of_skill
from kd.skills.records import load
from kd.types import Record, Skill


def check_judges(cfg: DictConfig) -> None:
    """Raises ValueError for a judge that could read no answer, reference or label, or not be asked for a text."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    own = load_skill(cfg.skill)
    others = [load_skill(skill_node(name)) for name in config["evaluation"]["skills"]] if config["judge"] else []
    for name, node in config["judge"].items():
        path = f"judge.{name}"
        judge: Judge = instantiate(OmegaConf.create({"judge": {name: prompt_node(node)}}).judge[name], _convert_="all")
        for skill in (own, *own.parts.values(), *others):
            _check_judged(path, judge, skill, config["evaluation"]["answers"])
        labelled_by(judge)
        model = teacher_node(node, config["teacher"])
        words = laid_out(described(model)).tokenizer if judge.verdict == "text" and is_ours(model) else None
        if words is not None and not words.chat_template:
            raise ValueError(
                f"{path} generates its verdicts, and its model has no chat template, as a base model has none; take an "
                f"Instruct model ({path}.source), give it a chat_template, or set {path}.verdict=likelihood"
            )


def _check_judged(path: str, judge: Judge, skill: Skill, answers: int | None) -> None:
    if skill.images:
        raise ValueError(f"{path} reads text alone, and the prompts of skill {skill.name} have images; leave it out")
    metric = of_skill(skill.metric).name
    if not generates(next((one for one in skill.metrics if one.metric.name == metric), None), skill.metrics):
        raise ValueError(
            f"{path} judges answers, and skill {skill.name} is measured by likelihoods alone, so that none is "
            "generated; add a metric of answers to skill.metrics, such as length"
        )
    records = load(skill, "test")[:answers] if judge.reads_reference or "references" in judge.opponents else []
    if bare := next((one for one in records if not (one.responses or one.meta.get("references"))), None):
        raise ValueError(
            f"{path} reads the reference of each record, and record {bare.id} of {skill.name} has none; take a judge "
            f"that reads none (judge=graded), or {path}.against=[teacher]"
        )


def labelled_by(judge: Judge) -> list[Record]:
    """The records on which a judge's agreement is measured. Raises ValueError for a skill without any."""
    if judge.labelled is None:
        return []
    skill = load_skill(skill_node(judge.labelled, "judge.labelled"))
    return labelled_pairs(judge.labelled, load(skill, "test"))[: judge.labelled_items]


def load_judges(cfg: DictConfig, **interval: Any) -> list[Judging]:
    """The judges of a config of which everything is prepared; jobs of one process share a judge's own model.

    interval: as in `kd.intervals`.
    """
    found, own = [], OmegaConf.to_container(cfg.teacher, resolve=True)
    for name, node in OmegaConf.to_container(cfg.judge, resolve=True).items():  # type: ignore[union-attr]
        whole = OmegaConf.create({"judge": {name: prompt_node(node)}})
        judge: Judge = instantiate(whole.judge[name], _convert_="all")
        model = teacher_node(node, own)  # type: ignore[arg-type]
        text, files = json.dumps(model, sort_keys=True), json.dumps(content_digests(model), sort_keys=True)
        teacher = load_teacher(cfg.teacher) if model == own else _shared_judge(text, files)
        found.append(Judging(str(name), judge, teacher.to(device(cfg)), labelled_by(judge), **interval))
    return found


@lru_cache(maxsize=1)
def _shared_judge(node: str, files: str) -> Any:
    return made(node)
