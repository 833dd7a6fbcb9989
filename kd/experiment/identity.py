"""The hash that names a run: its resolved config, the content of what it reads, and the versions of its code."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import kd
from kd.artifacts import texts_sha256
from kd.components.choices import choices, content
from kd.components.instantiation import instantiate
from kd.components.signatures import joined, suggestion
from kd.composition.interfaces import interface_of, made_by
from kd.data.prompt_templates import template_text as prompt_template
from kd.models.tokenizers import template_text
from kd.runs.folder import config_hash
from kd.secrets import hashable, masked
from kd.skills.records import made, skill_of
from kd.sources.addresses import digest, keys_of
from kd.teachers.interface import Teacher
from kd.training.observers import counted
from kd.types import Record, Skill, Split
from kd.versions import versions

TRAINING = ("kd.experiment.build",)
JUDGING = ("kd.judges.panel",)  # where a run has judges
STAGES = (
    *TRAINING,
    "kd.evaluation.evaluate",
    "kd.evaluation.variants.robustness",
    "kd.evaluation.excess_error",
    "kd.evaluation.drafting",
)
SOURCE = ("address", "member", "sha256", "adapter")  # the keys of a source
MODELS = ("source", "tokenizer")  # keys of a model whose value may be an address alone
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def identity(cfg: DictConfig, stages: Sequence[str] = STAGES) -> str:
    """12 hexadecimal digits, equal for two configs where their results must hold the same numbers.

    Args:
        cfg: the composed config, or the part of it that counts.
        stages: the modules that read it, whatever the config names.

    Data, models and files from outside count by content; components count by their `VERSION` (`kd.versions`), those
    from outside of `kd` by their source.

    Raises:
        ValueError, FileNotFoundError: something that the run reads is not there or is damaged.
    """
    config = counted(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    named = {"metrics": _metric_nodes(config), "variants": _variant_nodes(config)}
    found = content_digests(config) | _data_digest(config) | _corpus_digest(config)
    found |= {
        key: texts_sha256(json.dumps(node, sort_keys=True) for node in nodes) for key, nodes in named.items() if nodes
    }
    digests = {masked(name): content for name, content in found.items()}
    version = code_of({**config, **named}, (*stages, *_part_classes(config.get("skill"))))
    return config_hash(_hashed(cfg), digests=digests, version=version)


def _hashed(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that enters the hash."""
    return _in_order(_counted_settings("", counted(hashable(cfg))))


def _counted_settings(path: str, node: Any) -> Any:
    """A node without the settings of teachers on which no number depends (`kd.teachers.interface.Teacher`)."""
    if not isinstance(node, Mapping):
        return node
    is_teacher = node.get("_target_") and interface_of(path) is Teacher
    apart = made_by(path, node).uncounted(node) if is_teacher else frozenset()
    return {key: _counted_settings(joined(path, key), value) for key, value in node.items() if key not in apart}


def _metric_nodes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The content of the files of `conf/metric` that the run's skills name: the config has their names alone."""
    own = config.get("skill")
    named = [skill_node(name) for name in (config.get("evaluation") or {}).get("skills") or ()]
    skills = [skill_of(node) for node in [own, *named] if node and node.get("_target_")]
    every = [one for skill in skills for one in (skill, *skill.parts.values())]
    return [metric.node for skill in every for metric in skill.metrics]


def _variant_nodes(config: Mapping[str, Any]) -> list[Any]:
    """The content of the files of `conf/variant` that the evaluation names; not read where no result depends on it."""
    names = (config.get("evaluation") or {}).get("variants") or ()
    return [content("variant", name) if isinstance(name, str) else name for name in names]


def _part_classes(node: Any) -> set[str]:
    """The dotted names of the classes of a mixture's skills, which its node does not name."""
    if not node or not node.get("_target_"):
        return set()
    kinds = {type(skill) for skill in skill_of(node).parts.values()}
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}


def alike(one: DictConfig, other: DictConfig) -> bool:
    """Return whether two configs have the same identity; no content is read for that."""
    return settings_hash(one) == settings_hash(other)


def settings_hash(cfg: DictConfig) -> str:
    """12 hexadecimal digits of all settings that count; those of contents and code are not among them."""
    return config_hash(_hashed(cfg), digests={}, version={})


def _in_order(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the augmentation's stages as a list: their order counts, that of a mapping's keys does not."""
    stages = (config.get("augmentation") or {}).get("stages") or {}
    return {**config, "augmentation": {**config["augmentation"], "stages": [*stages.values()]}} if stages else config


def family(cfg: DictConfig) -> str:
    """12 hexadecimal digits: the identity of a config without its seed and the values that refer to it."""
    other = cfg.copy()
    other.seed = 0
    return identity(other)


def code_of(config: Mapping[str, Any], stages: Sequence[str] = STAGES) -> dict[str, int | str]:
    """The versions of `kd` and of everything that the stages and the components of a resolved config depend on."""
    judging = JUDGING if config.get("judge") else ()
    return {"kd": kd.__version__, **versions(*stages, *judging, *sorted(targets_in(counted(config))))}


def targets_in(node: Any) -> set[str]:
    """Every `_target_` below a node of the config."""
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    own = {str(node["_target_"])} if isinstance(node, Mapping) and node.get("_target_") else set()
    return own.union(*map(targets_in, children))


def load_skill(node: Any) -> Skill:
    """The skill of a config's node `skill`, made once in a process: its records are read for the identity, too."""
    content = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return skill_of(content)


def _data_digest(config: dict[str, Any]) -> dict[str, str]:
    """Digests of all records that the run can read, so that their source does not matter; of judges' labels and of the
    skills that a stage names, too."""
    node = config.get("skill")
    own = {"skill": _records_digest(json.dumps(node, sort_keys=True))} if node and node.get("_target_") else {}
    labelled = {judge["labelled"] for judge in (config.get("judge") or {}).values() if judge.get("labelled")}
    stages = ((config.get("augmentation") or {}).get("stages") or {}).values()
    compared = {name for stage in stages for name in stage.get("skills") or ()}  # by filters
    evaluated = (config.get("evaluation") or {}).get("skills") or ()
    others = dict.fromkeys([*evaluated, *sorted(labelled), *sorted(compared)])
    return own | {f"skill {name}": _records_digest(json.dumps(skill_node(name), sort_keys=True)) for name in others}


def skill_node(name: str, where: str = "evaluation.skills") -> dict[str, Any]:
    """The content of conf/skill/NAME.yaml, for `evaluation.skills` or another key `where`.

    Raises ValueError, with the nearest name, where there is none, and for a setting that it leaves to the user.
    """
    if name not in (known := choices("skill")):
        raise ValueError(f"{where}: conf/skill has no {name}.yaml; {suggestion(name, known)}")
    node: dict[str, Any] = content("skill", name)
    if missing := [key for key, value in node.items() if value == "???"]:
        raise ValueError(
            f"{where}: skill {name} has no value for {missing[0]}; write a file of conf/skill that gives it "
            f"(defaults: [{name}])"
        )
    return node


@cache  # of all skills of a sweep: a text of 64 characters each
def _records_digest(node: str) -> str:
    mixed = made(node)
    every = [(split, r) for skill in (mixed, *mixed.parts.values()) for split in SPLITS for r in skill.load(split)]
    return texts_sha256(json.dumps([split, _plain(_content(record))]) for split, record in every)


def _content(record: Record) -> dict[str, Any]:
    """The record's fields; its images by content, where it has any."""
    own = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "images"}
    return own | ({"images": [image.digest for image in record.images]} if record.images else {})


def check_records(node: Any) -> None:
    """Raises ValueError if a skill's records differ from those in the identity of the run."""
    text = json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True)
    if _records_digest.__wrapped__(text) != _records_digest(text):
        raise ValueError(
            f"the records of skill {node._target_} changed after the run was named by them; start the command again, "
            "and leave the data as they are until the first step (a skill's load must give the same every time)"
        )


def check_unchanged(cfg: DictConfig, named: str) -> None:
    """Raises ValueError if the files that a run has read differ from those in its identity.

    Args:
        cfg: the composed config.
        named: its identity before anything was loaded.
    """
    check_records(cfg.skill)
    if identity(cfg) != named:
        raise ValueError(
            "a file that this run reads (of a model or plain text) changed after the run was named by it; start the "
            "command again, and leave the files as they are until the first step"
        )


def _plain(value: Any) -> Any:
    """A value that is the same in every process: sets in order, foreign objects as their text without addresses."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value, key=str)}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in sorted(field.name for field in fields(value))}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item), sort_keys=True) for item in value)
    return [type(value).__qualname__, re.sub(r" at 0x[0-9a-f]+", "", repr(value))]


def _corpus_digest(config: dict[str, Any]) -> dict[str, str]:
    """The digest of the plain text, where a term learns on it."""
    if not any(term.get("stream") == "lm" for term in config.get("objective", {}).values()):
        return {}
    return {"corpus": instantiate(config["corpus"]).digest}


def _run_digest(folder: str) -> dict[str, str]:
    """The digest of the models in a finished run's folder, which a config may name (reward=reward_model)."""
    parts = [Path(folder).expanduser() / name for name in ("student", "objective.safetensors")]
    return {str(part): digest(f"local:{part}") for part in parts if part.exists()}


def sources(node: Any) -> Iterator[dict[str, Any]]:
    """The keys of every source below a config node: mappings with an address, and models' addresses alone."""
    if isinstance(node, list):
        for child in node:
            yield from sources(child)
    if not isinstance(node, Mapping):
        return
    if "address" in node:
        yield {key: node[key] for key in SOURCE if key in node}
    for name, child in node.items():
        if name in MODELS and isinstance(child, str) and ":" in child:  # bytes, and words of stages, are no addresses
            yield keys_of(child)
        yield from sources(child)


def content_digests(node: Any) -> dict[str, str]:
    """Content hashes of all sources, by address and what stands beside it, and of runs below `node`."""
    found = {}
    for keys in sources(node):
        beside = [f"{key}={value}" for key, value in keys.items() if key != "address" and value is not None]
        found[" ".join([keys["address"], *beside])] = digest(**keys)
    return found | _other_digests(node)


def _other_digests(node: Any) -> dict[str, str]:
    """Content hashes of the runs and chat templates that a config node names."""
    if isinstance(node, list):
        return {k: v for child in node for k, v in _other_digests(child).items()}
    if not isinstance(node, dict):
        return {}
    own: dict[str, str] = {}
    own |= _run_digest(node["folder"]) if isinstance(node.get("folder"), str) else {}
    if isinstance(template := node.get("chat_template"), str):  # of a model; it may be the path of a file
        own[template] = texts_sha256([template_text(template)])
    for name, template in node.items():  # files of prompts
        named = str(name).endswith("template") and name != "chat_template" and isinstance(template, str)
        if named and "{" not in template and "\n" not in template:
            own[template] = texts_sha256([prompt_template(str(name), template)])
    return own | {k: v for child in node.values() for k, v in _other_digests(child).items()}
