"""Sharded models (FSDP2) on two real processes learn what one process learns; other numbers of ranks resume them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from kd.composition.check import check
from kd.objectives.divergence import cross_entropy, forward_kl
from kd.training.shards import SHARDS
from tests import runs
from tests.training.test_module import pretrained, saved_folder
from tests.training.test_ranks import (
    AGAIN,
    BLOCKS,
    EXACT,
    FEATURES,
    GREEDY,
    GROUPS,
    STREAMS,
    TURNS,
    moments,
    one_rank,
    plain_text,
    relative,
)

SHARDED = "trainer=fsdp_cpu"
OWN = {"_target_": "kd.teachers.self_teacher.Own", "decay": 0.5}
BOTH = {"fkl": runs.term(forward_kl), "sft": runs.term(cross_entropy)}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
KEPT = "trainer.sharding.reshard_after_forward=false"
UNTIED = "student.model.architecture.tie_word_embeddings=false"
LAYERS = "student.model.architecture.num_hidden_layers=3"
CLIPPED = "optim.clip=1e-3"
WIDER = "teacher.model.architecture.hidden_size=24"
Family = tuple[Sequence[str], dict[str, Any]]
FAMILIES: dict[str, Family] = {
    "logits (fkl)": (["objective=fkl"], {}),
    "logits, weights kept for the backward pass": (["objective=fkl", KEPT], {}),
    "untied head, three layers": (["objective=fkl", UNTIED, LAYERS], {}),
    "hidden states (hidden_mse, a projection), clipped": (["objective=hidden_mse", WIDER, CLIPPED], {}),
    "attention (minilm), no gradient for the last layers": ([FEATURES, LAYERS], {}),
    "taid": (["objective=taid"], {}),
    "LoRA (fkl), clipped": (["objective=fkl", CLIPPED], {"student": LORA}),
    "six terms, row-wise and not, a reference": ([], {"objective": runs.MIXED}),
    "terms that take turns": (TURNS, {}),
    "two streams, a term with an optimizer": (BLOCKS, {"objective": STREAMS}),
    "on-policy (six terms)": ([], {"objective": runs.MIXED, "rollout": GREEDY}),
    "on-policy, replayed groups, a teacher's reward (grpo, dpo)": (GROUPS, {"rollout": AGAIN}),
    "own teacher, averaged": ([], {"objective": BOTH, "teacher": {**OWN, "mode": "ema"}}),
    "own teacher, live": ([], {"objective": BOTH, "teacher": {**OWN, "mode": "live"}}),
}
BOUND = 1e-6
RESHARDED = 1e-12


def nodes_of(family: str, folder: Path) -> dict[str, Any]:
    _, nodes = FAMILIES[family]
    if nodes.get("student") is LORA:
        return {"student": {"model": pretrained(saved_folder(folder / "model"), LORA), "prepare": None}}
    return {**nodes, "corpus": plain_text(folder)} if "objective" in nodes and nodes["objective"] is STREAMS else nodes


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Every family on two ranks, one after another."""
    return runs.shared(tmp_path_factory, "sharded", every_family)


def every_family(folder: Path) -> None:
    folder.mkdir(parents=True)
    jobs = [
        runs.job(folder / str(i), SHARDED, *EXACT, *FAMILIES[family][0], **nodes_of(family, folder))
        for i, family in enumerate(FAMILIES)
    ]
    done = runs.in_processes(*jobs)
    assert done.returncode == 0, done.stderr[-8000:]


def differences(one: Path, two: Path) -> dict[str, float]:
    """The largest differences of two runs in gradients, weights and logged losses, relative to the largest number."""
    by_one, by_two = runs.checkpoint(one), runs.checkpoint(two)
    logged, by_ranks = runs.metrics(one), runs.metrics(two)
    assert logged.keys() == by_ranks.keys()
    losses = [name for name in logged if ",train," in name or ",validation," in name]
    return {
        "gradients": relative(moments(one), moments(two)),
        "weights": relative(by_one["state_dict"], by_two["state_dict"]),
        "metrics": max(abs(float(logged[n]) - float(by_ranks[n])) / max(abs(float(logged[n])), 1e-3) for n in losses),
    }


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_two_sharded_ranks_equal_one_process(sharded, tmp_path, family):
    """In gradients, weights, losses and cost, over four steps of unequal lengths and numbers of micro-batches."""
    overrides = [word for word in FAMILIES[family][0] if not word.startswith("trainer.")]
    one_rank(tmp_path, *overrides, **nodes_of(family, tmp_path))
    two = sharded / str(list(FAMILIES).index(family))
    found = differences(tmp_path, two)
    assert max(found.values()) < BOUND, found
    assert max(float(x.abs().max()) for x in moments(tmp_path).values()) > 1e-6  # there was something to learn
    adapters = ["lora_" in name for name in runs.checkpoint(two)["state_dict"]]
    assert any(adapters) == all(adapters) == (FAMILIES[family][1].get("student") is LORA)
    spent, by_two = (runs.checkpoint(path)["distillation"]["budget"] for path in (tmp_path, two))
    for name in ("tokens", "rows", "teacher_tokens", "generated_tokens", "student_flops"):
        assert spent[name] == by_two[name], name


def trace(path: Path) -> dict[str, float]:
    """The logged losses, by step and name."""
    return {name: float(value) for name, value in runs.metrics(path).items() if name.endswith("loss") or "nll" in name}


RESUMED = [  # terms with a state; adapters; a term with an optimizer; averages
    "six terms, row-wise and not, a reference",
    "LoRA (fkl), clipped",
    "two streams, a term with an optimizer",
    "own teacher, averaged",
]


@pytest.mark.long
@pytest.mark.parametrize("family", RESUMED)
def test_other_numbers_of_ranks_resume_a_sharded_run(tmp_path, family):
    """Two sharded ranks, one process, two sharded ranks: stopped twice, and the same losses as one that was not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    overrides, nodes = [*runs.EXACT, *FAMILIES[family][0]], nodes_of(family, tmp_path)
    parts = [([SHARDED], 4), ([], 7), ([SHARDED], None)]
    done = runs.in_processes(runs.job(whole, SHARDED, *overrides, **nodes))
    assert done.returncode == 0, done.stderr[-8000:]
    for trainer, stop in parts:
        signals = () if stop is None else ((stop, 0, "SIGTERM"),)
        job = runs.job(cut, *trainer, *overrides, **{**nodes, "rollout": runs.scripted(cut, *signals)})
        done = runs.in_processes(job)
        assert done.returncode == (0 if stop is None else 143), done.stderr[-8000:]
        assert_written_by(2 if trainer else 1, cut / "checkpoints/last.ckpt")
    assert trace(whole).keys() == trace(cut).keys()
    for name, value in trace(whole).items():
        assert trace(cut)[name] == pytest.approx(value, rel=RESHARDED), name
    one, other = (runs.checkpoint(path) for path in (whole, cut))
    found = {"weights": relative(one["state_dict"], other["state_dict"])}
    for i, (saved, resumed) in enumerate(zip(*(run["optimizer_states"] for run in (one, other)), strict=True)):
        for number, state in saved["state"].items():
            found[f"optimizer {i}, {number}"] = relative(state, resumed["state"][number])
    if averages := one["distillation"]["teacher"]:
        found["averages"] = relative(averages, other["distillation"]["teacher"])
    assert max(found.values()) < RESHARDED, found
    assert ("averages" in found) == ("averaged" in family)


def assert_written_by(ranks: int, last: Path) -> None:
    """Each of several ranks wrote a file of shards, and neither file nor folder of an earlier checkpoint is left."""
    folders = list(last.parent.glob("last.shards-*"))
    assert len(folders) == (ranks > 1)
    parts = sorted(path.name for folder in folders for path in folder.glob("*.distcp"))
    assert parts == [f"__{rank}_0.distcp" for rank in range(ranks) if ranks > 1]
    sharded = torch.load(last, weights_only=True).get(SHARDS, {}).get("places", {}).values()
    assert bool(sharded) == (ranks > 1)
    assert all(place[0] != "optimizer_states" or place[-1] != "step" for place in sharded)


@pytest.mark.long
def test_two_sharded_ranks_resume_bit_for_bit(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    overrides = [SHARDED, runs.DROPOUT]
    stopped = runs.job(cut, *overrides, rollout=runs.scripted(cut, (5, 1, "SIGTERM")))
    assert runs.in_processes(runs.job(whole, *overrides), stopped).returncode == 143
    assert runs.in_processes(runs.job(cut, *overrides)).returncode == 0
    one, other = (runs.checkpoint(path) for path in (whole, cut))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert runs.metrics(whole) == runs.metrics(cut)


@pytest.mark.long
def test_ranks_that_generate_for_different_times_wait_for_none(tmp_path):
    """By both engines: a rank whose responses end early makes fewer forward passes."""
    engines = {
        "torch": {"_target_": "kd.generators.torch.Torch"},
        "transformers": OmegaConf.to_container(OmegaConf.load(runs.CONF / "generator/transformers.yaml")),
    }
    jobs = []
    for name, engine in engines.items():
        drawn = {**GREEDY, "max_new_tokens": 24, "temperature": 1.0, "batch_size": 1, "generator": engine}
        jobs.append(runs.job(tmp_path / name, SHARDED, "optim.steps=3", "checkpoint.answers=2", rollout=drawn))
    done = runs.in_processes(*jobs)
    assert done.returncode == 0, done.stderr[-8000:]
    for name in engines:
        assert runs.checkpoint(tmp_path / name)["distillation"]["step"] == 3


def refusal(*overrides: str, **nodes: Any) -> str:
    with pytest.raises(ValueError, match=r"; take|unknown|trainer") as refused:
        check(runs.config(*overrides, **nodes))
    return str(refused.value)


def test_what_sharded_models_cannot_do_is_refused_before_they_are_loaded():
    assert "take false" in refusal(SHARDED, "trainer.sharding.offload_teacher=true")
    assert "did you mean fsdp2?" in refusal("trainer.strategy=fsdp")
    assert "trainer.sharding.reshard" in refusal(SHARDED, "+trainer.sharding.reshard=true")
    tiny = runs.config().teacher
    routed = {"_target_": "kd.teachers.ensemble.Ensemble", "members": {"a": tiny, "b": tiny}, "combine": "routed"}
    assert "take combine=mean_probabilities, or trainer=ddp" in refusal(SHARDED, teacher=routed)
    assert "take generator=torch, or trainer=ddp" in refusal(SHARDED, "rollout=on_policy", "generator=vllm")
