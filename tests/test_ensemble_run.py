"""conf/teacher/ensemble.yaml from the command line's config to results.json: prepared, read, counted, measured.

Run: python -m pytest tests/test_ensemble_run.py
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.composition.check import check
from kd.experiment import preparation
from kd.experiment import run as experiment
from kd.experiment.build import build, fit
from kd.experiment.plan import Plan
from kd.sweeps.jobs import Job
from kd.types import Split
from tests.runs import Toy, config, started

CONF = Path(__file__).parents[1] / "conf"
ENSEMBLE = ["teacher=ensemble", "student=tiny", "skill=spell_backward", "trainer=cpu"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
MEMBERS = ("teacher.members.first", "teacher.members.second")
SMALL = [
    *(f"{role}.model.architecture.{key}={value}" for role in (*MEMBERS, "student") for key, value in SIZE.items()),
    *(f"{role}.model.architecture.num_hidden_layers=1" for role in (*MEMBERS, "student")),
    *(f"{role}.prepare.steps=1" for role in MEMBERS),
    *(f"{role}.prepare.window=4" for role in MEMBERS),
    "optim.steps=2",
    "checkpoint.validate=2",
    "skill.train=60",
    "evaluation=quick",
    "compare=null",
]


@pytest.fixture
def conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=[*ENSEMBLE, *overrides])


@pytest.mark.usefixtures("conf")
@pytest.mark.long
def test_a_member_is_the_teacher_that_it_is_alone():
    """Its checkpoint is shared with runs where it teaches alone; the other differs by its seed."""
    cfg = composed()
    alone = compose("config", overrides=["teacher=tiny", *ENSEMBLE[1:]])
    first, second = (preparation.checkpoint_folder(cfg, role) for role in MEMBERS)
    assert first == preparation.checkpoint_folder(alone, "teacher") != second


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("teacher.combine=mean_probabilitys", ["teacher.combine=mean_probabilitys", "mean_logits, mean_probabilities"]),
        ("teacher.members.second.prepare.steps=0", ["teacher.members.second.prepare.steps=0", "greater than 0"]),
        ("+teacher.members.second.prepare.stepz=1", ["teacher.members.second.prepare.stepz", "did you mean steps?"]),
        ("+teacher.members.second.modle=1", ["teacher.members.second.modle", "did you mean model?"]),
        (
            "teacher.members.second.prepare.objective=fkl",
            ["second.prepare.objective=fkl needs a teacher"],
        ),
        ("teacher.members.second.prepare.skill=spel", ["members.second.prepare.skill=spel", "conf/skill"]),
        ("teacher.weights={first: 0, second: 1}", ["teacher.weights", "mapping or null"]),
        ("targets=hidden", ["targets Hidden cannot be kept of an ensemble", "combine=mean_probabilities", "topk"]),
        ("augmentation=labeling", ["Labeling needs teacher, but teacher Ensemble provides logits", "teacher=", "tiny"]),
    ],
)
def test_what_is_refused_before_anything_is_loaded(override, parts):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - its sentence is looked at
        check(composed(override))
    assert all(part in str(raised.value) for part in parts), raised.value


@pytest.mark.usefixtures("conf")
def test_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    cfg = composed(*SMALL, f"run.root={tmp_path}")
    experiment.run(cfg, Job([]))
    output = capsys.readouterr().out
    assert output.count("once for all runs") == 2
    assert len([folder for folder in (tmp_path / "cache/prepared").iterdir() if (folder / "config.json").exists()]) == 2
    folder = Plan.of(cfg).folder
    results = folder.results()
    (scores,) = results["scores"].values()
    assert scores["bits_per_byte"]["teacher"]["value"] > 0
    accuracy = next(systems for metric, systems in scores.items() if metric != "bits_per_byte")
    assert accuracy["teacher"] is None  # it writes nothing
    assert accuracy["after"] is not None
    assert results["agreement"]["forward_kl"]["teacher"]["value"] == 0.0
    assert results["agreement"]["forward_kl"]["after"]["value"] > 0
    assert results["budget"]["teacher_tokens"] == 2 * results["budget"]["tokens"]
    card = (folder.path / "student/README.md").read_text(encoding="utf-8")
    assert "| teacher first | " in card
    assert "| teacher second | " in card


# ---- routed: a skill whose records name their teacher ----------------------------------------------------------------


class TwoTeachers(Toy):
    """The toy's records, to be learnt from two teachers in turn."""

    names = ("first", "second")

    def load(self, split: Split) -> list:
        return [replace(r, meta={"teacher": self.names[i % 2]}) for i, r in enumerate(super().load(split))]


class AThird(TwoTeachers):
    """One of them names an unknown teacher."""

    names = ("first", "third")


def routed(skill: str) -> DictConfig:
    cfg = config(skill={"_target_": f"{__name__}.{skill}"})
    member = OmegaConf.to_container(cfg.teacher, resolve=True)
    teacher = {"members": {"first": member, "second": member}, "combine": "routed", "weights": None}
    with open_dict(cfg):
        cfg.teacher = {"_target_": "kd.teachers.ensemble.Ensemble", **teacher}
    return cfg


def test_a_routed_run_counts_one_reader(tmp_path):
    cfg = routed("TwoTeachers")
    parts = build(cfg)
    fit(cfg, parts, started(tmp_path))
    budget = parts.module.budget
    assert budget.teacher_tokens == budget.tokens > 0


def test_an_unknown_name_is_named_before_the_first_step():
    with pytest.raises(ValueError, match=r"record 1 of toy names teacher 'third' in its meta.* first and second"):
        build(routed("AThird"))
