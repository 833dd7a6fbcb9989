"""Every refusal names value, reason and remedy; everything in `conf/` is accepted.

Run: python -m pytest tests/composition/test_composition.py
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from torch import Tensor, nn

from kd.components.axes import AXES
from kd.components.choices import CONF, choices
from kd.components.signatures import check_call, in_words, located
from kd.composition.check import check, check_overrides, describe, misfits, resolved
from kd.teachers.interface import Teacher

TINY = ("teacher=tiny", "student=tiny")
NO_TEACHER = ("teacher=none", "student=tiny", "objective=sft")
WANDB = {"project": "kd", "entity": None, "group": None, "job_type": "train", "tags": [], "mode": None}
WANDB |= {"answers": 32, "artifact": "none"}
PREPARE = {"objective": "sft", "skill": None, "steps": 1}

# What a file needs beside it, where the defaults will not do.
LISTED = ("targets=topk", "targets.audit=null")  # the likeliest ids alone are known
BESIDE = {
    "trainer=fsdp_multinode": ("optim.window=32",),
    "teacher=pretrained": ("teacher.source=local:./mine",),
    "teacher=none": NO_TEACHER,
    "teacher=tiny": TINY,
    "teacher=images/tiny": ("student=images/tiny",),
    "teacher=ensemble": ("student=tiny",),
    "teacher=own": ("student=tiny",),
    "teacher=routed": ("student=tiny", "skill=spell_backward"),
    "teacher=endpoint": (
        *("teacher.url=http://127.0.0.1:8000/v1", "teacher.served_model=mine", "student=tiny"),
        *("objective=sft", "augmentation=labeling"),
    ),
    "teacher=served": ("teacher.url=http://127.0.0.1:8765", "teacher.identity=0123456789abcdef", "student=tiny"),
    "teacher=imported": ("teacher.file.address=local:./rows.jsonl", "teacher.tokenizer=bytes", "student=tiny", *LISTED),
    "teacher=several": ("student=tiny", "objective=sft", "augmentation=labeling"),
    "augmentation=imported": ("augmentation.stages.imported.file.address=local:./texts.jsonl",),
    "skill=dataset": (f"skill.path={CONF.parent / 'docs' / 'own_data' / 'numerals.jsonl'}",),
    "skill=mixture": ("skill.of={spell_backward: 1, chain_sum: 1}",),
    "method=babyllama": ("student=tiny",),  # nothing to cut a student out of
    "method=sdft": ("student=tiny",),
    "method=opsd": ("student=tiny",),
    "method=sdpo": ("student=tiny",),
    "method=trd_self": ("student=tiny",),
    "method=mopd": ("student=tiny", "skill=spell_backward"),
    "method=dn_mopd": ("student=tiny", "skill=spell_backward"),
    "reward=domain_normalised": (
        *("teacher=routed", "student=tiny", "skill=spell_backward"),
        *("rollout=on_policy", "objective=policy_gradient"),
    ),
    "reward=log_ratio": ("rollout=on_policy", "objective=minillm", "corpus=docstrings"),
    "reward=verifier": ("objective=apo_zero",),
    "reward=teacher_score": ("objective=apo_zero",),
    "generator=vllm": ("rollout=on_policy",),
    "generator=vllm_colocated": ("rollout=on_policy",),
    "generator=transformers": ("rollout=on_policy",),
    "generator=beam_search": ("rollout=teacher", "rollout.temperature=0.0"),
    "reward=discriminator": ("objective=gad", "rollout=demonstrated"),
    "reward=reward_model": ("objective=apo_zero", "reward.folder=outputs/preferences-0123456789ab"),
    "rollout=ranked": ("reward=verifier",),
    "rollout=privileged_peers": ("reward=verifier", "teacher=own", "student=tiny"),
    "corpus=local": ("corpus.path=README.md",),
    "alignment=none": ("objective=sft",),
    "skill=reasoning_gym": ("skill.task=gcd",),
}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@cache
def base(overrides: tuple[str, ...]) -> DictConfig:
    return compose("config", overrides=list(overrides))


@cache
def whole(overrides: tuple[str, ...]) -> DictConfig:
    return compose("config", overrides=list(overrides), return_hydra_config=True)


def composed_whole(name: str, overrides: list[str], return_hydra_config: bool) -> DictConfig:
    """As `hydra.compose`, once for all tests."""
    return whole(tuple(overrides)).copy()


def composed(*choices: str, **values: Any) -> DictConfig:
    """The composed config; `values` are set afterwards, dots written as two underscores."""
    cfg = base(choices).copy()
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=True, force_add=True)
    return cfg


def refused(cfg: DictConfig) -> str:
    """The one sentence."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the callers look at the sentence
        check(cfg)
    return one_sentence(raised.value)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# ---- what conf/ holds is accepted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rollout", choices("rollout"))
def test_ppo_renews_its_values_when_the_rollout_writes(rollout):
    """Its `uses` is the rollout's, where that replays; 1 where it does not."""
    told = resolved(composed("objective=ppo", f"rollout={rollout}"))
    assert told["objective"]["ppo"]["loss"]["uses"] == told["rollout"].get("uses", 1)
    assert told["rollout"].get("uses", 1) == (4 if "replay" in rollout else 1)


@pytest.mark.parametrize(("values", "uses"), [(["rollout=on_policy"], 1), (["rollout=replay", "rollout.uses=3"], 3)])
def test_ppo_is_a_run_on_what_is_written_and_what_is_read_again(values, uses):
    cfg = composed("objective=ppo", "reward=verifier", *values)
    check(cfg)
    assert instantiate(cfg.objective.ppo.loss).uses == uses


def test_default_is_a_run():
    check(composed())


# What objectives on samples are computed beside, the simplest first.
COMPANIONS = (
    (),
    ("corpus=docstrings",),
    ("rollout=on_policy",),
    ("rollout=on_policy", "rollout.samples=2", "reward=verifier"),
    ("rollout=paired",),
    ("rollout=demonstrated", "reward=discriminator"),
    ("rollout=teacher_mixed", "reward=log_ratio", "corpus=docstrings"),
)
FITTING = {  # which of them is tried first, to save time; all others follow
    **dict.fromkeys(("apo_zero", "grpo", "grpo_kl", "kdrl", "ppo", "pro", "reinforce", "rrhf"), 3),
    **dict.fromkeys(("cpo", "ddpo", "dpkd", "dpo", "ipo", "listwise", "margin", "margin_mse", "orpo"), 4),
    **dict.fromkeys(("reward_model", "rso", "simpo", "slic", "spin"), 4),
    **{"distillm": 1, "opd": 2, "opd_discounted": 2, "gad": 5, "minillm": 6},
}


@pytest.mark.parametrize("name", choices("objective"))
def test_every_objective_is_a_run(name):
    told = []
    for beside in (COMPANIONS[FITTING.get(name, 0)], *COMPANIONS):
        cfg = composed(f"objective={name}", *beside)
        if not (errors := misfits(resolved(cfg))):  # without the search for a way out that a refusal ends with
            return check(cfg)
        told.append(f"{beside}: {errors}")
    pytest.fail("\n".join(told))


FILES = [f"{g}={n}" for g in AXES if g != "objective" for n in choices(g)]
FILES.remove("reward=scores")  # no skill here has scores: tests/composition/test_remedies.py


@pytest.mark.parametrize("choice", FILES)
def test_every_file_is_part_of_some_run(choice):
    check(composed(choice, *BESIDE.get(choice, ())))


MANY_JOBS = ("tiny_methods", "tiny_grid")
POINTS = [
    pytest.param(f"{group}={name}", marks=[pytest.mark.long] if name in MANY_JOBS else [])
    for group in ("method", "experiment")
    for name in choices(group)
]


@pytest.mark.parametrize("choice", POINTS)
def test_every_named_point_passes_as_a_command_line(choice, command_line):
    command_line(choice)


def test_a_sweep_of_everything_passes_as_a_command_line(command_line):
    command_line("-m", "objective=glob(*)", "seed=1,2", "optim.lr=1e-3,1e-4")


# ---- values, keys and targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"seed": -1}, ["seed=-1", "greater than or equal to 0", "int ≥ 0"]),
        ({"seed": 1.5}, ["seed=1.5", "integer"]),
        ({"temperature": 0}, ["temperature=0", "greater than or equal to"]),
        ({"temperature": "hot"}, ["temperature=hot", "number", "float between"]),
        ({"temperature": True}, ["temperature=true", "number"]),
        ({"reduction": "tokens"}, ["reduction=tokens", "did you mean token?", "token, sequence, sum"]),
        ({"compare": "stf"}, ["compare=stf", "conf/objective", "did you mean sft?"]),
        ({"sead": 3}, ["sead", "did you mean seed?"]),
        ({"optim.steps": 0}, ["optim.steps=0", "int between 1 and"]),
        ({"optim.steps": 1.5}, ["optim.steps=1.5", "integer"]),
        ({"optim.lr": "abc"}, ["optim.lr=abc", "number", "optim takes lr: float between"]),
        ({"optim.warmup": 2}, ["optim.warmup=2", "less than or equal to 1", "between 0 and 1"]),
        ({"optim.schedule": "cosin"}, ["optim.schedule=cosin", "did you mean cosine?"]),
        ({"optim.stepz": 3}, ["optim.stepz", "did you mean steps?"]),
        ({"data.workers": -1}, ["data.workers=-1", "int between 0 and"]),
        ({"checkpoint.use": "bst"}, ["checkpoint.use=bst", "did you mean best?"]),
        ({"checkpoint.monitor": "validation/loss"}, ["checkpoint.monitor=validation/loss", "validation/bits_per_byte"]),
        ({"run.force": 1}, ["run.force=1", "bool"]),
        ({"logger.wandb": {**WANDB, "mode": "of"}}, ["logger.wandb.mode=of", "off"]),
        ({"logger.wandb": {**WANDB, "artifact": "weight"}}, ["logger.wandb.artifact=weight", "weights"]),
        ({"logger.csv": {}}, ["logger.csv={}: names no logger", "lightning.pytorch.loggers.TensorBoardLogger"]),
        ({"student.prepare": {"objective": "sft"}}, ["student.prepare.skill is missing", "set student.prepare.skill"]),
        (
            {"student.prepare": {"objective": "sft", "skill": None}},
            ["student.prepare.steps is missing", "steps: int > 0"],
        ),
        (
            {"student.prepare": {**PREPARE, "lr": 0}},
            ["student.prepare.lr=0", "greater than or equal to", "default 0.0005"],
        ),
        ({"student.prepare": {**PREPARE, "stps": 2}}, ["student.prepare.stps", "did you mean steps?"]),
        ({"student.model.layers": "abc"}, ["student.model.layers=abc", "int or list of int"]),
        ({"student.model.layers": [1, 2.5]}, ["student.model.layers=[1, 2.5]", "int or list of int"]),
        ({"student.model.rule": "evn"}, ["student.model.rule=evn", "did you mean even?"]),
        ({"student.model.depth": 3}, ["student.model.depth", "kd.models.networks.pruned takes no depth"]),
        ({"student.model.lora": {"rnk": 3}}, ["student.model.lora.rnk", "LoraConfig"]),
        ({"teacher.model.source.adress": "x"}, ["teacher.model.source.adress", "did you mean address?"]),
        ({"objective.fkl.loss.bta": 1}, ["objective.fkl.loss.bta", "forward_kl takes no bta", "known: "]),
        ({"objective.fkl.loss.temperature": -1}, ["objective.fkl.loss.temperature=-1", "forward_kl", "float between"]),
        ({"objective.fkl.loss.student_logits": 1}, ["student_logits is a signal", "leave it out"]),
        ({"objective.fkl.wieght": 1}, ["objective.fkl.wieght", "did you mean weight?"]),
        ({"objective.fkl.weight": float("nan")}, ["objective.fkl.weight=NaN", "a number between 0"]),
        ({"objective.fkl.weight": 0}, ["objective.fkl.weight=0", "nothing is left to learn"]),
        ({"objective.fkl.lr": 0.1}, ["objective.fkl.lr=0.1", "forward_kl", "optim.lr"]),
        ({"objective.fkl.kind": "divergance"}, ["objective.fkl.kind=divergance", "divergence, clipped, likelihood"]),
        ({"objective.fkl.loss._partial_": False}, ["_partial_=false", "forward_kl", "set _partial_: true"]),
        ({"objective.fkl": 1}, ["objective.fkl=1", "weight, kind and loss"]),
        ({"rollout._target_": "kd.rollout.Offline"}, ["kd has no rollout", "did you mean rollouts?"]),
        ({"rollout._target_": "kd.rollouts.offline.Ofline"}, ["has no Ofline", "did you mean Offline?"]),
        ({"rollout._target_": "kdd.rollouts.Offline"}, ["no package kdd"]),
        ({"teacher._target_": "kd.models.own.Own"}, ["has moved", "name kd.teachers.self_teacher.Own"]),
        ({"rollout._target_": "kd.rollouts"}, ["rollout._target_=kd.rollouts", "no function or class"]),
        ({"skill": "gsm"}, ["skill=gsm", "give skill=", "or another of"]),
        ({"evaluation.baseline": "unigrm"}, ["evaluation.baseline=unigrm", "did you mean unigram?", "null"]),
        ({"objective.fkl.loss.temperature": "${temprature}"}, ["${temprature}", "did you mean temperature?"]),
        ({"name": "${oc.env:KD_NOT_THERE}"}, ["name is ${oc.env:KD_NOT_THERE}", "'KD_NOT_THERE' not found"]),
        ({"skill.train": "???"}, ["skill.train has no value", "set skill.train="]),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_wrong_value_is_named_with_reason_and_remedy(values, parts):
    cfg = composed()
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, merge=True, force_add=True)
    sentence = refused(cfg)
    for part in parts:
        assert part in sentence


def test_values_that_are_right_pass():
    check(composed(temperature=2, optim__clip=None, student__model__layers=[0, 29], evaluation__items=None))
    check(composed("student=lora", student__model__lora__r=4))
    check(composed(student__prepare=PREPARE))


@pytest.mark.parametrize("missing", ["seed", "optim", "evaluation"])
def test_what_is_missing_is_named(missing):
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    del cfg[missing]
    assert refused(cfg).startswith(missing)


def test_a_required_hyperparameter_is_named():
    cfg = composed("rollout=on_policy")
    OmegaConf.set_struct(cfg, False)
    del cfg.rollout.max_new_tokens
    assert "rollout.max_new_tokens is missing" in refused(cfg)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("num_layers", 3, "did you mean num_hidden_layers?"),
        ("model_type", "lama", "did you mean llama?"),
        ("hidden_size", 62, "multiple"),
    ],
)
def test_the_fields_of_an_architecture_are_known(field, value, part):
    """transformers would take `num_layers` without a word and build its default of 32."""
    sentence = refused(composed("student=scratch", **{f"student__model__architecture__{field}": value}))
    assert "student.model.architecture" in sentence
    assert part in sentence


def test_an_alias_of_an_architecture_is_known():
    cfg = composed("student=scratch")
    cfg.student.model.architecture = {"model_type": "gpt2", "hidden_size": 32, "n_head": 4}
    check(cfg)


# ---- demand and supply -----------------------------------------------------------------------------------------------


SAMPLED = ["rollout=on_policy", "rollout.samples=2", "reward=verifier"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["objective=dpo", *SAMPLED], "dpo takes the first response to a prompt for the preferred one, but rollout"),
        (
            ["objective=simpo", "rollout=replay", "rollout.writer.samples=2"],
            "but rollout Replay gives them in the order",
        ),
        (["objective=reward_model", *SAMPLED], "; take rollout=ranked"),
        (
            ["objective=gad", "rollout=on_policy", "rollout.samples=4", "reward=discriminator"],
            "; take rollout=demonstrated",
        ),
        (["objective=dpo", "rollout=paired", "rollout.samples=2"], "rollout Paired gives: group_size=3"),
        (
            ["objective=dpo", "rollout=ranked", "rollout.keep=all", "reward=verifier"],
            "rollout Ranked gives: group_size=4",
        ),
        (["objective=grpo", "rollout=on_policy", "reward=verifier"], "; take rollout.samples=4"),
        (
            ["objective=reinforce", "rollout=on_policy", "reward=verifier"],
            "; take rollout.samples=4",
        ),
        (["objective=rrhf", "rollout=replay", "reward=verifier"], "there is nothing to rank"),
    ],
)
@pytest.mark.long
def test_responses_that_cannot_be_compared_are_refused(words, part):
    assert part in refused(composed(*words))


@pytest.mark.parametrize("setting", ["rollout.capacity=8", "rollout.max_age=1"])
def test_a_window_is_used_as_a_whole_by_what_remembers_it(setting):
    words = ["objective=ppo", "rollout=replay", "reward=verifier"]
    check(composed(*words))
    assert "ppo scores each window by its head as it was" in refused(composed(*words, setting))


@pytest.mark.parametrize(
    "words",
    [
        ["objective=dpo", "rollout=paired"],
        ["objective=dpo", "rollout=ranked", "reward=verifier"],
        ["objective=reward_model", "rollout=ranked", "rollout.keep=all", "reward=verifier"],
        ["objective=reinforce", "objective.reinforce.loss.baseline=none", "rollout=on_policy", "reward=verifier"],
        ["objective=grpo", *SAMPLED],
        ["objective=rrhf", "rollout=replay", "rollout.writer.samples=3", "reward=verifier"],
    ],
)
def test_responses_that_can_be_compared_are_taken(words):
    check(composed(*words))


def test_an_objective_without_its_teacher():
    sentence = refused(composed("teacher=none", "student=tiny"))
    assert "fkl needs a teacher (teacher_logits), but teacher=none" in sentence
    assert "; take teacher=tiny (or teacher=ensemble or own), or objective=sft alone" in sentence


def test_an_augmentation_without_its_teacher():
    sentence = refused(composed(*NO_TEACHER, "augmentation=labeling"))
    assert "Labeling needs a teacher, but teacher=none" in sentence
    assert "augmentation=none" in sentence


def test_a_student_cut_out_of_a_teacher_without_a_checkpoint():
    sentence = refused(composed("teacher=tiny"))
    assert "student.source is ${teacher.model.source}" in sentence
    assert "student=tiny" in sentence
    assert "teacher=smollm2_135m" in sentence


def test_an_alignment_that_gives_nothing():
    sentence = refused(composed("alignment=none"))
    assert "fkl needs teacher_logits, but alignment Unaligned provides pairs" in sentence
    assert "; take alignment=same (or alignment=min_edit or " in sentence


def test_a_distance_to_a_teacher_that_is_not_there():
    sentence = refused(composed(*NO_TEACHER, checkpoint__monitor="validation/forward_kl"))
    assert "checkpoint.monitor=validation/forward_kl needs a teacher" in sentence


def test_the_baseline_is_a_run_too():
    sentence = refused(composed("alignment=none", "objective=sft", compare="rkl"))
    assert sentence.startswith("compare=rkl: rkl needs teacher_logits")
    assert "compare=null" in sentence


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["loss"], "objective.loss: the run logs, or keeps, something else under the name loss"),  # its own sum
        (["grad_norm"], "something else under the name grad_norm"),
        (["fkl", "fkl_weight"], "objective.fkl_weight: the run logs, or keeps, something else"),  # that of a schedule
        (["keys"], "something else under the name keys"),  # of a mapping of modules
        (["a.b"], "objective.a.b: a term is named by letters, digits and underscores"),
        (["train/fkl"], "objective.train/fkl: a term is named by letters"),
        (["2fkl"], "a letter first"),
    ],
)
def test_a_term_has_a_name_of_its_own_in_what_is_logged(names, told):
    cfg = composed()
    cfg.objective = {name: cfg.objective.fkl for name in names}
    assert told in refused(cfg)


@pytest.mark.long
def test_a_prepared_student_has_no_teacher_yet():
    sentence = refused(composed(student__prepare={**PREPARE, "objective": "fkl"}))
    assert "student.prepare.objective=fkl needs a teacher" in sentence
    assert "take sft" in sentence


def rewarded(student_logprobs: Float[Tensor, "B T"], rewards: Float[Tensor, " B"]) -> Float[Tensor, "B T"]:
    return student_logprobs * rewards[:, None]


def attentive(student_attention: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return student_attention


def averaged(student_logits: Float[Tensor, "*n V"]) -> Float[Tensor, ""]:
    return student_logits.mean()


class Projected(nn.Module):
    def __init__(self, *, width: Annotated[int, Field(ge=1)]):
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(
        self, student_hidden: tuple[Float[Tensor, "B T D"], ...], teacher_hidden: tuple[Float[Tensor, "B T E"], ...]
    ) -> Float[Tensor, "B T"]:
        return (self.project(student_hidden[-1]) - teacher_hidden[-1]).square().mean(-1)


class TextOnly(Teacher):
    provides = frozenset({"text"})

    def __init__(self, model: Any):
        raise AssertionError("a check loads nothing")

    def identity(self) -> str:
        return "text only"


def with_loss(loss: Any, *overrides: str, **settings: Any) -> DictConfig:
    """The default with an objective that the repository does not know."""
    node = {"_target_": f"{__name__}.{loss.__name__}", **settings}
    if not isinstance(loss, type):
        node["_partial_"] = True
    cfg = composed(*overrides)
    cfg.objective = {"new": {"weight": 1.0, "kind": "policy", "loss": node}}
    return cfg


@pytest.mark.parametrize("name", ["teacher_tokens", "generated_tokens"])
def test_a_limit_that_only_one_of_two_runs_would_reach(name):
    sentence = refused(composed(f"budget.{name}=1000"))
    assert f"budget.{name}=1000 would end this run, but not the one beside it (compare=sft)" in sentence
    check(composed(f"budget.{name}=1000", "compare=null"))


def test_a_signal_that_nothing_provides():
    sentence = refused(with_loss(rewarded))
    assert "new needs rewards, but reward=none; take reward=verifier" in sentence


def test_a_signal_that_does_not_exist():
    sentence = refused(with_loss(attentive))
    assert "objective.new.loss" in sentence
    assert "student_attention" in sentence
    assert "student_logits" in sentence  # the known ones


def test_a_reduced_loss():
    assert "unreduced" in refused(with_loss(averaged))


def test_a_module_requires_by_its_forward():
    check(with_loss(Projected, width=8))
    sentence = refused(with_loss(Projected, *("teacher=none", "student=tiny"), width=8))
    assert "new needs a teacher (teacher_hidden)" in sentence
    assert "objective.new.loss.width=0" in refused(with_loss(Projected, width=0))
    assert "leave _partial_ out" in refused(with_loss(Projected, width=8, _partial_=True))
    assert "no forward" in refused(with_loss(TextOnly))


def test_a_module_may_learn_at_a_rate_of_its_own():
    cfg = with_loss(Projected, width=8)
    OmegaConf.update(cfg, "objective.new.lr", 1e-3, force_add=True)
    check(cfg)


def test_a_teacher_that_cannot_be_read_deep_enough():
    sentence = refused(composed(teacher___target_=f"{__name__}.TextOnly"))
    assert "fkl needs teacher_logits, but teacher TextOnly provides text" in sentence
    assert "; take teacher=smollm2_135m" in sentence


# ---- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("accumulate_grad_batches", 2, ["trainer.accumulate_grad_batches=2", "set optim.window"]),
        ("gradient_clip_val", 1.0, ["trainer.gradient_clip_val=1.0", "set optim.clip"]),
        ("gradient_clip_algorithm", "norm", ["trainer.gradient_clip_algorithm=norm", "set optim.clip"]),
        ("max_steps", 10, ["trainer.max_steps=10", "set optim.steps"]),
        ("use_distributed_sampler", True, ["trainer.use_distributed_sampler=true", "leave it out"]),
        ("precision", "16-mixed", ["trainer.precision=16-mixed", "for a GPU", "bf16-mixed"]),
        ("precision", "16-true", ["trainer.precision=16-true", "32-true, bf16-mixed, 16-mixed, bf16-true, 64-true"]),
        ("strategy", "dpp", ["trainer.strategy=dpp", "did you mean ddp?"]),
        ("devicse", 2, ["trainer.devicse", "did you mean devices?"]),
        ("num_nodes", "two", ["trainer.num_nodes=two", "integer"]),
        ("devices", 16, ["optim.window=2 is smaller than the 16 devices", "optim.window=16", "trainer.devices=2"]),
        ("devices", [0, 1, 2, 3, 4, 5, 6, 7, 8], ["9 devices"]),
        ("devices", "10", ["10 devices"]),
        ("num_nodes", 9, ["9 devices"]),
    ],
)
def test_what_the_trainer_refuses(key, value, parts):
    sentence = refused(composed(**{f"trainer__{key}": value}))
    for part in parts:
        assert part in sentence


@contextmanager
def sweep(*overrides: str) -> Iterator[DictConfig]:
    """A job's config inside Hydra."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        yield composed(*(override for override in overrides if not override.startswith("hydra")))
    finally:
        HydraConfig.instance().cfg = before


def test_ranks_that_would_start_the_sweep_again():
    with sweep("trainer=ddp_cpu", "hydra/launcher=basic", "hydra.mode=MULTIRUN") as cfg:
        sentence = refused(cfg)
    assert "trainer.strategy=ddp" in sentence
    assert "hydra/launcher=process" in sentence


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer=ddp_cpu", "hydra.mode=MULTIRUN"),
        ("trainer=ddp_cpu", "hydra/launcher=basic", "hydra.mode=RUN"),
        ("trainer=cpu", "hydra/launcher=basic", "hydra.mode=MULTIRUN"),
    ],
)
def test_ranks_that_join_their_own_job(overrides):
    with sweep(*overrides) as cfg:
        check(cfg)


# ---- the formula -----------------------------------------------------------------------------------------------------


def test_formula():
    assert describe(composed()) == "objective = 1.0 · KL(p ‖ q) [fkl]   (mean over response tokens)"
    two = composed("objective=[fkl,sft]", objective__sft__weight=0.5)
    kl, nll = "KL(p ‖ q) [fkl]", "−log q(y_t) [sft]"
    assert describe(two) == f"objective = 1.0 · {kl} + 0.5 · {nll}   (mean over response tokens)"
    two.reduction = "sum"
    assert describe(two) == f"objective = 1.0 · {kl} + 0.5 · {nll}   (sum over response tokens)"
    two.objective.fkl.weight, two.reduction = 2, "sequence"
    assert describe(two).startswith(f"objective = 2.0 · {kl} + 0.5 · {nll}   (mean over responses")


def test_the_formula_shows_hyperparameters_that_differ():
    warm = composed(temperature=2.0, temperature_squared=True)
    assert describe(warm).startswith("objective = 1.0 · KL(p ‖ q) [fkl, T=2, T² on]   (")


def test_interpolations_are_followed():
    assert resolved(composed(temperature=3.0))["objective"]["fkl"]["loss"]["temperature"] == 3.0


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (Annotated[int, Field(ge=1)], "int ≥ 1"),
        (Annotated[float, Field(gt=0, lt=1)], "float > 0 and < 1"),
        (Annotated[float, Field(ge=0, le=1)] | None, "float between 0 and 1 or null"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[int, ...], "list of int"),
        (dict[str, Any], "mapping"),
        (str, "str"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert in_words(annotation) == words


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_ALLOW", "needs_more")
    (tmp_path / "needs_more.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="needs the package package_that_nobody_has; install it"):
        located("skill", "needs_more.Skill")


def test_tensors_and_nodes_are_not_judged():
    def takes(x: Tensor, y: int, *, z: Literal["a"] | Tensor = "a") -> None: ...

    check_call("node", {"x": 1, "y": {"_target_": "anything"}, "z": "b"}, takes)
    check_call("node", {"_partial_": True, "z": torch.float32.itemsize}, takes)


# ---- command lines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """check_overrides on conf/, or on a copy with more files: `files` is {path below conf: text}."""

    def given(*arguments: str, files: dict[str, str] | None = None) -> None:
        ours = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            if files is None:  # what Hydra composes from conf/ it composes once for all tests
                monkeypatch.setattr("kd.composition.overrides.compose", composed_whole)
            check_overrides(arguments, CONF if files is None else with_files(tmp_path / "conf", files))
        finally:
            GlobalHydra.instance().hydra = ours

    return given


def with_files(conf: Path, files: dict[str, str]) -> Path:
    shutil.copytree(CONF, conf)
    for name, text in files.items():
        (conf / name).parent.mkdir(exist_ok=True)
        (conf / name).write_text(text)
    return conf


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("objective=rkll", ["objective=rkll", "did you mean rkl?", "choices: "]),
        ("-m objective=rkl,fkll", ["objective=fkll", "did you mean fkl?"]),
        ("objective=[fkl,stf]", ["objective=stf", "did you mean sft?"]),
        ("-m objective=fkl,[fkl,stf]", ["objective=stf", "did you mean sft?"]),
        ("-m objective=choice(fkl,stf)", ["objective=stf"]),
        ("objective=glob(z*)", ["objective=glob(z*)", "nothing in conf/objective matches"]),
        ("+objective@extra=fkll", ["objective=fkll"]),
        ("objective@extra=fkl", ["objective@extra=fkl", "cannot be composed"]),
        ("method=gdk", ["method=gdk", "did you mean gkd?"]),
        ("experiment=no_such", ["conf/experiment has no no_such.yaml", "choices: "]),
        ("evaluation=null", ["evaluation=null", "~evaluation"]),
        ("objectve=rkl", ["objectve=rkl", "did you mean objective?"]),
        ("sead=3", ["sead=3", "did you mean seed?"]),
        ("lr=1e-3", ["lr=1e-3", "did you mean optim.lr?"]),
        ("optim.stepz=3,4", ["optim.stepz=3,4", "did you mean optim.steps?"]),
        ("optim={stepz:3}", ["optim.stepz", "did you mean optim.steps?"]),
        ("~optim.clap", ["optim.clap", "did you mean optim.clip?"]),
        ("+seed=1", ["seed is in the config already", "leave the + out"]),
        ("objective=jsd objective.jsd.beta=.1", ["did you mean objective.jsd.loss.beta?"]),
        ("-m objective=jsd,fkl objective.jsd.loss.beta=.1", ["objective.jsd.loss.beta", "objective=fkl"]),
        ("-m objective=fkl,jsd objective.jsd.loss.beta=.1", ["objective.jsd.loss.beta", "objective=fkl"]),
        ("-m method=kd,gkd rollout.writer.samples=2", ["rollout.writer.samples", "method=kd"]),
        (
            "augmentation=labeling augmentation.stages.0.samples=2",
            ["did you mean augmentation.stages.labeling.samples?"],
        ),
        ("student.model.source.address=x", ["student.model.source is ${..source}", "set student.source.address"]),
        ("student.source.address=x", ["student.source is ${teacher.model.source}", "set teacher.model.source.address"]),
        ("student.model.lora.r=8", ["student.model.lora is null", "+student.model.lora.r=8"]),
        ("trainer.max_steps=3", ["trainer.max_steps=3", "set optim.steps"]),
        ("trainer.foo=3", ["trainer has accelerator", "+trainer.foo=3"]),
        ("epochs=3", ["did you mean optim.steps?", "steps of optim.window records"]),
        ("foos=3", ["the top level has name, seed"]),
        ("foo", ["foo", "key=value"]),
        ("objective=[fkl", ["objective=[fkl", "key=value"]),
        ("name=${a", ["name=${a"]),
        ("method=gkd objective=rkl", ["method=gkd means objective=jsd", "objective=rkl", "drop method=gkd"]),
        ("-m method=gkd,kd objective=jsd", ["method=kd means objective=fkl", "objective=jsd"]),
        ("-m method=gkd objective=jsd,rkl", ["method=gkd means objective=jsd", "objective=rkl"]),
        ("method=gkd objective=[jsd,sft]", ["objective=[jsd,sft]"]),
        ("hydra/launcher=no_such", ["hydra/launcher=no_such", "cannot be composed", "Could not find"]),
        ("--config-dir elsewhere objective=theirs", ["elsewhere is no folder"]),
        ("--multirnu seed=1", ["--multirnu", "did you mean --multirun?"]),
        ("seed=1 --config-name config optim.lr=1", ["optim.lr=1 stands apart", "flags first"]),
    ],
)
def test_a_wrong_override_is_answered(line, parts, command_line):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the sentence is looked at
        command_line(*line.split())
    for part in parts:
        assert part in one_sentence(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "--cfg job",
        "hydra.verbose=true hydra/launcher=basic",
        "objective=[fkl,sft] objective.sft.weight=.5",
        "objective=jsd objective.jsd.loss.beta=.1,.5 -m",
        "method=gkd objective=jsd rollout.writer.samples=2",
        "+trainer.deterministic=true ++seed=3 ~optim.clip",
        "skill=reasoning_gym skill.task=gcd +skill.options.min_numbers=2 skill.options.min_numbers=3",
        "student=lora student.model.lora.r=8",
        "teacher.model.source={address:local:x} teacher.model.source.address=y",
        "augmentation=labeling augmentation.stages.labeling.samples=2",
        "seed=range(1,4) optim.lr=interval(0.1,1)",
    ],
)
def test_a_right_override_passes(line, command_line):
    command_line(*line.split())


TWO = {"method/one.yaml": "# @package _global_\ndefaults:\n  - override /rollout: offline\n"}
EXPERIMENT = "# @package _global_\ndefaults:\n  - override /rollout: on_policy\n"


def test_two_files_that_choose_one_axis(command_line):
    with pytest.raises(ValueError, match="method=one and experiment=x both choose rollout") as raised:
        command_line("method=one", "experiment=x", files=TWO | {"experiment/x.yaml": EXPERIMENT})
    assert "offline and on_policy" in one_sentence(raised.value)
    assert "drop one" in one_sentence(raised.value)


def test_a_file_that_chooses_a_method_and_its_axis(command_line):
    text = EXPERIMENT + "  - override /method: one\n"
    with pytest.raises(ValueError, match="experiment=x and method=one both choose rollout"):
        command_line("experiment=x", files=TWO | {"experiment/x.yaml": text})


def test_the_command_line_wins_over_an_experiment(command_line):
    command_line("experiment=x", "rollout=offline", files=TWO | {"experiment/x.yaml": EXPERIMENT})


SWEEP = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      {}\n"


@pytest.mark.parametrize(
    ("parameter", "line", "part"),
    [
        ("objective: fkl,rkll", "", "did you mean rkl?"),
        ("optim.stepz: 1,2", "", "did you mean optim.steps?"),
        ("objective: fkl,jsd", "objective.fkl.weight=2", "objective=jsd"),
        ("rollout: offline,on_policy", "method=one", "experiment=x sets rollout=on_policy"),
    ],
)
def test_what_an_experiment_sweeps_is_read_too(parameter, line, part, command_line):
    files = TWO | {"experiment/x.yaml": SWEEP.format(parameter)}
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        command_line("experiment=x", *line.split(), files=files)
    assert part in one_sentence(raised.value)


def test_without_conf(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml does not exist"):
        check_overrides(["seed=1"], tmp_path)


def test_reading_the_command_line_is_light():
    """A typo is answered before torch is imported."""
    code = "import sys, kd.composition.overrides; print(*({'torch', 'transformers', 'lightning'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
