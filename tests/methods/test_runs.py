"""Every method learns: four steps of a real run on models of a layer or two.

Run: python -m pytest tests/methods/test_runs.py
"""

import math
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.components.choices import CONF, axes, choices
from kd.experiment.build import build, fit
from kd.types import Record, Split
from tests.methods.points import pair
from tests.runs import SIZE, Toy, started

STEPS = 4
MEMBERS = ("teacher.members.first", "teacher.members.second")
DOMAINS = ("spell_backward", "number_filtering")
EXPERTS = tuple(f"teacher.members.{name}" for name in DOMAINS)
ROOM = ("max_new_tokens", "writer.max_new_tokens")


class Lettered(Toy):
    """What is asked for is letters."""

    def score(self, record: Record, text: str) -> float:
        """Their share; it needs nothing of the record."""
        return sum(letter.isalpha() for letter in text) / max(len(text), 1)


class OfDomains(Lettered):
    """Records of two domains in turn."""

    def load(self, split: Split) -> list[Record]:
        """Each names its own."""
        return [replace(one, meta={"teacher": DOMAINS[i % 2]}) for i, one in enumerate(super().load(split))]


def small(method: str) -> DictConfig:
    """The method's config with the smallest models that it can have, and a skill that needs no package."""
    brings = axes("method", method, CONF).get("teacher", ("tiny",))[0]
    teachers = {"tiny": ("teacher",), "ensemble": MEMBERS, "routed": EXPERTS, "own": ()}[brings]
    sizes = [f"{r}.model.architecture.{k}={v}" for r in (*teachers, "student") for k, v in SIZE.items()]
    sizes += [f"{role}.model.architecture.num_hidden_layers=2" for role in (*teachers, "student")]
    prepared = [f"{role}.prepare=null" for role in teachers]
    run = [f"optim.steps={STEPS}", "optim.window=2", "checkpoint.records=2", "data.lm_length=16", "trainer=cpu"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={method}", *pair(method), *sizes, *prepared, *run])
    with open_dict(cfg):
        skill = "OfDomains" if brings == "routed" else "Lettered"
        cfg.skill = {"_target_": f"tests.methods.test_runs.{skill}"}
        if "success" in cfg.rollout:
            cfg.rollout.success = 0.0  # random weights have none
    _shorten(cfg)
    return cfg


def _shorten(cfg: DictConfig) -> None:
    """Texts of a few bytes."""
    for key in ROOM:
        if OmegaConf.select(cfg.rollout, key) is not None:
            OmegaConf.update(cfg.rollout, key, 5)
    for stage in cfg.augmentation.stages.values():
        stage.max_new_tokens = 5
    if "characters" in cfg.corpus:
        cfg.corpus.update({"characters": 5000, "packages": ["peft"]})


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_learns(method, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    cfg = small(method)
    parts = build(cfg)
    before = {name: p.detach().clone() for name, p in parts.module.student.named_parameters()}
    fit(cfg, parts, started(tmp_path / "run"))
    after = dict(parts.module.student.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert any(not torch.equal(after[name], p) for name, p in before.items())
    spent = parts.module.budget
    assert spent.student_flops > 0
    assert math.isfinite(spent.seconds)
    writes = cfg.rollout._target_.rpartition(".")[2] not in ("Offline", "Mixed")
    assert (spent.generated_tokens > 0) or not writes
