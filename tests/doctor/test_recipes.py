"""The recipes of scale: each composes and is estimated without weights, a hub or a GPU, and fits what it is made for.

Run: python -m pytest tests/doctor/test_recipes.py
"""

import re

import pytest
import yaml
from omegaconf import DictConfig

from kd.components.choices import CONF, choices
from kd.composition.machine import check_deepspeed
from kd.composition.overrides import started
from kd.doctor.dry_run import dry_run
from kd.doctor.gpus import gpu
from kd.doctor.grid import jobs
from kd.doctor.workload import Assumed

H100 = Assumed(gpu("h100-80"))
RECIPES = {"scale_one_gpu": 1, "scale_fsdp": 8, "scale_nodes": 32}  # devices
SMALL = ["teacher=tiny", "student=tiny", "skill=spell_backward", "compare=null", "optim.window=64"]


def composed(*overrides: str) -> DictConfig:
    with started(overrides=list(overrides)):
        (job,) = jobs(list(overrides))
        return job.cfg


def test_every_recipe_is_tested() -> None:
    assert {name for name in choices("experiment") if name.startswith("scale_")} == set(RECIPES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "scale_one_gpu" else pytest.mark.long) for name in RECIPES]
)
def test_a_recipe_is_estimated_and_fits(name: str) -> None:
    costs, memory = dry_run([f"experiment={name}"], H100)
    devices = RECIPES[name]
    assert re.match(
        rf"In total [\d.,]+ hours on {f'{devices} × ' if devices > 1 else ''}h100-80 at 40%", costs.notes[0]
    )
    assert memory.notes[0].endswith("every phase fits."), memory.notes[0]
    assert any("of memory of each machine" in note for note in memory.notes) == (devices > 1)


@pytest.mark.parametrize("name", choices("trainer"))
def test_a_trainer_composes_where_it_cannot_run(name: str) -> None:
    cfg = composed(*SMALL, f"trainer={name}")
    assert cfg.trainer.accelerator in ("cpu", "gpu")


@pytest.mark.parametrize("name", ["gpu", "ddp", "fsdp_multinode", "deepspeed"])
def test_a_trainer_has_a_comment_for_what_is_chosen(name: str) -> None:
    text = (CONF / "trainer" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    for line in text.splitlines():
        key = line.strip().partition(":")[0]
        if not line.startswith("#") and key not in ("accelerator", "strategy", "sharding"):
            assert " # " in line, line
    assert "precision" in yaml.safe_load(text)


def test_deepspeed_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed(*SMALL, "trainer=deepspeed")
    with pytest.raises(ValueError, match=r"trainer\.strategy=deepspeed_stage_2 needs the package deepspeed") as refused:
        check_deepspeed(cfg)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr("kd.composition.machine.find_spec", lambda name: name)  # where it is
    with pytest.raises(ValueError, match=r"optim\.clip=1\.0 bounds gradients"):
        check_deepspeed(cfg)
    cfg.optim.clip = None
    check_deepspeed(cfg)
