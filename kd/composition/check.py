"""Checks that a composed config is a run, before any weight is loaded; the error is one sentence.

First every value must be there; then names, types and bounds, of sections (`sections.py`) and of everything with a
`_target_`, must fit signatures (`kd.components.signatures`); then all that the objective, the rollout and the
augmentation require must be provided (`requirements.py`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.components.allowed import check_allowing
from kd.components.axes import AXES, sections
from kd.components.choices import choices, file_of
from kd.components.instantiation import calls, check_code, instantiate
from kd.components.signatures import check_call, joined, located, shown, suggestion
from kd.composition.formula import composed
from kd.composition.groups import check_margins
from kd.composition.interfaces import check_interfaces, interface_of, made_by
from kd.composition.lacks import Lack
from kd.composition.machine import check_sharding
from kd.composition.numbers import check_counts, check_heads, check_numbers
from kd.composition.overrides import check_overrides
from kd.composition.records import record_checks
from kd.composition.remedy import Line, explained, unresolved
from kd.composition.requirements import check_other_runs, provided, supply_checks
from kd.composition.sections import check_sections, check_trainer, prepared_roles
from kd.composition.suggestions import flattened
from kd.composition.targets import check_targets
from kd.composition.terms import check_objective, check_scaled
from kd.generators import Generator
from kd.judges.judge import Judge
from kd.judges.models import prompt_node, teacher_node
from kd.judges.panel import NAME
from kd.objectives.reduction import Reduction
from kd.training.observers import check_observers, supplied

__all__ = ["check", "check_overrides", "describe", "resolved"]


def check(
    cfg: DictConfig,
    *,
    words: Sequence[str] | None = None,
    models: Callable[[DictConfig], None] | None = None,
) -> None:
    """Raises ValueError, in one sentence that names value, reason and remedy, if `cfg` cannot be run.

    words: the overrides that made it, where Hydra does not run it as a job: refusals name the command line that works.
    models: the check of its models (`kd.experiment.compatibility.check_models`), which a command line that works must
            pass, too.
    """
    line = Line.of(words) if words is not None else Line.given()
    try:
        config = resolved(cfg)
    except Lack as error:
        raise ValueError(unresolved(cfg, error, misfits, line, models)) from None
    check_code("", config)
    check_sections(config)
    check_observers(config)
    check_allowing(config["run"].get("allow") or ())
    _check_other_files(config)
    check_objective(config["objective"])
    for path, node in calls("", config):
        _check_node(path, supplied(path, node))
    check_interfaces(config)
    check_numbers(config)
    check_trainer(config["trainer"], config["optim"]["window"])
    check_sharding(config)
    check_scaled(config)
    if errors := misfits(config):
        raise ValueError(explained(cfg, errors, misfits, line, models))


def misfits(config: Mapping[str, Any]) -> list[ValueError]:
    """The errors of a resolved config: requirements that are not met, settings that have no meaning or are not read."""
    found = []
    others: tuple[Callable[[], None], ...] = (
        partial(_check_turns, config),
        partial(_check_rounds, config),
        partial(check_targets, config),
        partial(_check_evaluation, config),
        partial(_check_judges, config),
        partial(check_margins, "rollout", config["rollout"], config["reward"]),
        partial(check_other_runs, config),
    )
    for check_one in (*supply_checks(config), *others, *record_checks(config)):
        try:
            check_one()
        except ValueError as error:
            found.append(error)
    return found


def _check_turns(config: Mapping[str, Any]) -> None:
    """Refuse a loss on all turns where the last is generated: earlier answers are those of the record."""
    if config["data"]["loss_on"] == "all" and not made_by("rollout", config["rollout"]).keeps_responses:
        raise ValueError(
            "data.loss_on=all learns every answer that a record holds, but this rollout generates the last one again; "
            "take rollout=offline, or data.loss_on=last"
        )


def _check_evaluation(config: Mapping[str, Any]) -> None:
    """Make the evaluation, whose constructor refuses samples that are all the same."""
    instantiate(OmegaConf.create({"evaluation": config["evaluation"]}).evaluation)


def _check_judges(config: Mapping[str, Any]) -> None:
    """Make each judge, whose constructor checks its prompt, and check that there is what it reads."""
    for name, node in config["judge"].items():
        path = f"judge.{name}"
        if not isinstance(node, Mapping) or not node.get("_target_"):
            raise ValueError(f"{path}={shown(node)}: a judge calls a class; give its _target_, or leave it out")
        judge: Any = instantiate(OmegaConf.create({"judge": {name: prompt_node(node)}}).judge[name], _convert_="all")
        if name == NAME:
            raise ValueError(f"{path}: {NAME} is the name of all judges together; give this one another")
        if not isinstance(judge, Judge):
            raise ValueError(f"{path}: {node['_target_']} is no judge; inherit kd.judges.judge.Judge")
        if not config["evaluation"]["answers"] and config["evaluation"]["answers"] is not None:
            raise ValueError(f"{path} judges answers, and evaluation.answers=0 prompts are answered; raise it")
        if "baseline" in judge.opponents and config["compare"] is None:
            raise ValueError(
                f"{path}.against names the baseline, and compare=null: there is none beside the run; take compare=sft, "
                f"or {path}.against=[references]"
            )
        _check_judging_model(path, judge, node, config)


def _check_judging_model(path: str, judge: Judge, node: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a judge without a model, or with one that does not do what its verdicts are read from."""
    own = node.get("teacher") or node.get("source")
    model, where = teacher_node(node, config["teacher"]), f"{path}.teacher" if own else "teacher"
    if "teacher" in judge.opponents:
        there = "text" in provided("teacher", config["teacher"]) and not config["targets"]["cached"]
        if not there or made_by("teacher", config["teacher"]).follows_student:
            raise ValueError(
                f"{path}.against names the teacher, and the run evaluates no text of one; take a teacher that provides "
                f"text (teacher=smollm2_135m, targets.cached=false), or {path}.against=[references]"
            )
    if model.get("_target_") is None:
        raise ValueError(
            f"{path} is judged by the run's teacher, and teacher=none; set {path}.source to the address of a model's "
            "weights"
        )
    found = made_by(where, model)
    required = "text" if judge.verdict == "text" else "logits"
    if required not in found.provides or found.follows_student:
        reason = "changes with the student" if found.follows_student else f"provides no {required}"
        raise ValueError(
            f"{path}.verdict={judge.verdict} is read from {required} of the judge, and {where} {found.__qualname__} "
            f"{reason}; set {path}.source to the address of a judge's weights"
        )
    if own and model.get("prepare") is not None:
        raise ValueError(f"{path}.teacher.prepare: a judge is not trained; give the source of its weights")


def _check_rounds(config: Mapping[str, Any]) -> None:
    """Refuse a loop whose rounds would elicit the same records again."""
    rounds, stages = config["loop"]["rounds"], config["augmentation"]["stages"]
    if rounds > 1 and not any("student" in made_by(f"augmentation.stages.{n}", s).requires for n, s in stages.items()):
        raise ValueError(
            f"loop.rounds={rounds} repeats a round in which the student generates nothing; take a stage in which it "
            "does (augmentation=rest_em), or loop.rounds=1"
        )


def describe(cfg: DictConfig) -> str:
    """The objective as a formula: "objective = 1.0 · KL(p ‖ q) [fkl, T=2]   (mean over response tokens)"."""
    objective: Any = OmegaConf.to_container(cfg.objective, resolve=True)
    means: dict[Reduction, str] = {
        "token": "mean over response tokens",
        "sequence": "mean over responses of the mean over their tokens",
        "sum": "sum over response tokens",
    }
    return f"objective = {composed(objective)}   ({means[cfg.reduction]})"


# ---- every value is there --------------------------------------------------------------------------------------------


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, interpolations replaced by what they refer to.

    Raises ValueError for a value that is left to the user (???), and for an interpolation that leads nowhere.
    """
    raw: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    known = flattened(raw)
    for path, value in known.items():
        if value == "???":
            raise ValueError(f"{path} has no value yet: the config leaves it to you; set {path}=...")
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, path, throw_on_resolution_failure=True)
            except OmegaConfBaseException as error:
                raise _unresolved(path, value, known, str(error)) from None
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _unresolved(path: str, value: str, known: Mapping[str, Any], error: str) -> ValueError:
    """The reason for which `value` at `path` leads nowhere, and the files of both groups that resolve it."""
    missing = [name for name in re.findall(r"\$\{([^${}:]+)\}", value) if name not in known and name[0] != "."]
    if not missing:
        reason = error.splitlines()[0].rpartition("interpolation: ")[2]
        return ValueError(f"{path} is {value}, which cannot be resolved: {reason}")
    fact = f"{path} is {value}, but there is no {missing[0]}"
    user, owner = path.partition(".")[0], missing[0].partition(".")[0]
    if not {user, owner} <= set(sections()):
        return ValueError(f"{fact}; {suggestion(missing[0], known)}")
    key = path.rpartition(".")[2]
    below = f"{user}.model.{key}"  # which the files fill in from the key above
    given = {name: one for name, one in known.items() if name == below or name.startswith(f"{below}.")}
    if below != path and given and given.get(below) != f"${{..{key}}}":
        return ValueError(f"{fact}; set {path}=..., which {below} is filled in from, instead of {below}")
    without = [name for name in _plain(user) if missing[0] not in file_of(user, name).read_text(encoding="utf-8")]
    having = [name for name in _plain(owner) if missing[0] in flattened({owner: OmegaConf.load(file_of(owner, name))})]
    return Lack(fact, {user: without, owner: having})


def _plain(group: str) -> list[str]:
    """The files of a group but those in folders, which are for skills of their own (images)."""
    return [name for name in choices(group) if "/" not in name]


def _check_other_files(config: Mapping[str, Any]) -> None:
    """Check the code that other runs of this config execute: its baseline, and the preparations of its models."""
    files = {("objective", config["compare"]): "compare"}
    for role, node in prepared_roles(config).items():
        for group in ("objective", "skill"):
            files[group, (node.get("prepare") or {}).get(group)] = f"{role}.prepare.{group}"
    for (group, name), path in files.items():
        if name is not None:
            check_code(f"{path}={name}", OmegaConf.to_container(OmegaConf.load(file_of(group, name)), resolve=False))


# ---- names, types, bounds --------------------------------------------------------------------------------------------


def _check_node(path: str, node: Mapping[str, Any]) -> None:
    callee = located(path, node["_target_"])
    place = re.sub(r"^(teacher\.members\.\w+|judge\.[\w-]+\.teacher)$", "teacher", path)
    place = re.sub(r"^judge\.[\w-]+$", "judge", place)
    check_call(path, node, callee, besides=AXES[place].beside if place in AXES else frozenset())
    if callee.__module__ == "kd.models.networks":
        _check_network(path, node)
    if interface_of(path) is Generator:
        made_by(path, node).check_node(path, node)


def _check_network(path: str, node: Mapping[str, Any]) -> None:
    """Check the mappings that `kd.models.networks` passes on against the signatures that take them."""
    from peft import LoraConfig

    from kd.sources.addresses import model_folder

    for key, taker in (("source", model_folder), ("tokenizer", model_folder), ("lora", LoraConfig)):
        if isinstance(node.get(key), Mapping):
            check_call(joined(path, key), node[key], taker)
    if isinstance(node.get("architecture"), Mapping):
        _check_architecture(joined(path, "architecture"), node["architecture"])


def _check_architecture(path: str, fields: Mapping[str, Any]) -> None:
    """Check names of fields: transformers silently accepts a misspelt one, and uses the default of the right one."""
    from transformers import CONFIG_MAPPING

    name = str(fields.get("model_type"))
    if name not in CONFIG_MAPPING:
        near = suggestion(name, CONFIG_MAPPING)
        raise ValueError(f"{path}.model_type={name}: transformers has no such model; {near}")
    config = CONFIG_MAPPING[name]
    given = {key: value for key, value in fields.items() if key != "model_type"}
    for key in given.keys() & config.sub_configs.keys():
        if isinstance(given[key], Mapping):
            _check_part(joined(path, key), given[key], config.sub_configs[key])
    _check_fields(path, given, config)


def _check_part(path: str, fields: Mapping[str, Any], usual: type) -> None:
    """Check a part of an architecture, of its `model_type`; `usual`: the class of a part without one."""
    from transformers import CONFIG_MAPPING, AutoConfig

    name = fields.get("model_type")
    if name is None and usual is AutoConfig:
        raise ValueError(f"{path} has no model_type; name one, as model_type: llama")
    if name is not None and name not in CONFIG_MAPPING:
        near = suggestion(name, CONFIG_MAPPING)
        raise ValueError(f"{path}.model_type={name}: transformers has no such model; {near}")
    given = {key: value for key, value in fields.items() if key != "model_type"}
    _check_fields(path, given, usual if name is None else CONFIG_MAPPING[name])


def _check_fields(path: str, given: Mapping[str, Any], config: Any) -> None:
    from huggingface_hub.errors import StrictDataclassError

    check_call(path, given, config, besides=config.attribute_map.keys())  # aliases, as hidden_size of gpt2's n_embd
    check_counts(path, given)
    try:
        check_heads(path, config(**given))
    except StrictDataclassError as error:
        reason = re.sub(r"^\w+Error: ", "", str(error).splitlines()[-1].strip())
        raise ValueError(f"{path}: {reason}") from None
