"""`python -m kd.doctor` on byte models: it passes what is right, its self-test can fail, and it makes nothing.

Run: python -m pytest tests/doctor/test_diagnosis.py
"""

import copy
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd.artifacts import store
from kd.components.choices import CONF
from kd.doctor import shift
from kd.doctor.__main__ import main
from kd.doctor.subject import composed, from_cache, without_teachers_text
from kd.experiment.export import export
from kd.experiment.findings import Finding, worst
from kd.experiment.preparation import checkpoint_folder
from kd.objectives.divergence import cross_entropy
from kd.training.terms import Term
from kd.types import Batch
from tests.doctor.subjects import TINY, diagnosis, line, node, toy
from tests.tiny import tiny

ROOT = Path(__file__).parents[2]


# --- what is right passes ---


def test_the_command_line_passes_tiny_models(capsys):
    code = main(["-n", "1", *TINY, "teacher.licence=CC0-1.0", "skill=spell_backward", "skill.train=100"])
    out = capsys.readouterr().out
    verdicts = re.findall(r"^(PASS|WARN|FAIL)  ", out, re.MULTILINE)
    assert (code, set(verdicts)) == (0, {"PASS"}), out
    assert len(verdicts) >= 12
    assert out.count("predicted at") == 1  # one table, as both read the same tokens


def test_each_member_of_an_ensemble_is_checked():
    teacher = {"members": {"a": node("teacher"), "b": node("teacher")}, "combine": "mean_logits"}
    with toy(teacher={"_target_": "kd.teachers.ensemble.Ensemble", **teacher}) as cfg:
        code, text = diagnosis(cfg)
    assert code == 0, text
    assert "teacher a CC0-1.0, teacher b CC0-1.0" in line(text, "licences")
    for role in ("teacher a", "teacher b", "student"):
        assert line(text, f"vocabulary ({role})").startswith("PASS")


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "skew_fkl", "skew_rkl", "tvd"])
def test_every_divergence_passes_its_self_test(name, subject, monkeypatch):
    shared = OmegaConf.create({"temperature": 1.0, "temperature_squared": False})
    shared.objective = OmegaConf.load(CONF / "objective" / f"{name}.yaml")
    terms = {term: Term(**instantiate(node, _convert_="all")) for term, node in shared.objective.items()}
    monkeypatch.setattr(subject.parts.module, "objective", terms)
    finding = shift.shift_self_test(subject.parts, subject.parts.data.train[:2])
    assert finding.verdict == "PASS", finding
    assert finding.fact.startswith(f"{name} is")


# --- the self-test can fail ---


def test_a_loss_that_is_not_zero_at_equality_fails(subject, monkeypatch):
    monkeypatch.setattr(subject.parts.module, "objective", {"sft": Term(cross_entropy, kind="divergence")})
    finding = shift.shift_self_test(subject.parts, subject.parts.data.train[:2])
    assert finding.verdict == "FAIL"


def test_a_teacher_that_is_read_one_position_off_fails(subject, monkeypatch):
    """The defect itself, in the module's own path: the value that the test calls `off` becomes the value."""
    observe = shift.Distillation.observe

    def moved(module: Any, batch: Batch) -> dict[str, Any]:
        return observe(module, replace(batch, teacher=shift.one_off(batch.teacher)))

    monkeypatch.setattr(shift.Distillation, "observe", moved)
    assert shift.shift_self_test(subject.parts, subject.parts.data.train[:2]).verdict == "FAIL"


def test_a_student_with_one_distribution_everywhere_shows_nothing(subject):
    parts = copy.deepcopy(subject.parts)
    for parameter in parts.module.student.parameters():
        parameter.data.zero_()
    assert shift.shift_self_test(parts, parts.data.train[:2]).verdict == "WARN"


def test_the_self_test_leaves_the_student_as_it_was(subject):
    student = subject.parts.module.student
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    modes = [module.training for module in student.modules()]
    assert shift.shift_self_test(subject.parts, subject.parts.data.train[:2]).verdict == "PASS"
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert [module.training for module in student.modules()] == modes


# --- nothing is made for a diagnosis ---


@pytest.mark.long
def test_a_teacher_is_prepared_only_if_the_cache_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    with composed(["teacher=tiny", "student=tiny", "skill=spell_backward"]) as cfg:
        given, [finding] = from_cache(cfg)
        assert (finding.verdict, finding.check) == ("WARN", "prepared teacher")
        assert "not in the cache" in finding.fact
        assert given.teacher.model == cfg.teacher.model
        assert given.teacher.prepare is None
        assert cfg.teacher.prepare is not None
        assert list(tmp_path.iterdir()) == []

        folder = checkpoint_folder(cfg, "teacher")
        store(folder, lambda path: export(tiny(dtype="float32"), path, ""), kind="prepared teacher")
        given, findings = from_cache(cfg)
        assert findings == []
        assert given.teacher.model.source.address == f"local:{folder}"


def test_the_teacher_writes_nothing():
    with toy("augmentation=labeling") as cfg:
        given, [finding] = without_teachers_text(cfg)
        assert given.augmentation.stages == {}
        assert len(cfg.augmentation.stages) == 1
        assert finding.verdict == "WARN"
        assert without_teachers_text(given) == (given, [])


# --- the command line ---


def test_a_config_that_cannot_be_run_is_one_line(capsys):
    assert main(["objective=rlk"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  config  ")
    assert main(["student=tiny", "skill=spell_backward", "skill.train=9", "teacher.source=local:nowhere"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  config  local:nowhere does not exist")


def test_a_missing_conf_is_reported(tmp_path):
    with pytest.raises(ValueError, match="conf is no folder"), composed([], tmp_path / "conf"):
        pass


def test_the_gravest_verdict_counts():
    made = partial(Finding, check="", fact="")
    assert worst([]) == "PASS"
    assert worst([made("WARN"), made("PASS")]) == "WARN"
    assert worst([made("PASS"), made("FAIL"), made("WARN")]) == "FAIL"


@pytest.mark.archive
@pytest.mark.long
def test_the_default_passes(capsys):
    code = main(["-n", "1"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert not re.search("^FAIL", out, re.MULTILINE)
    assert line(out, "padding").startswith("PASS")
    assert line(out, "chat template (student)").startswith("PASS")
    assert line(out, "self-test").startswith("PASS")
    assert "'<|im_end|>'" in line(out, "end token")


@pytest.mark.parametrize("start", ["random", "pseudo_inverse"])
def test_a_term_that_begins_with_both_heads_is_no_obstacle(start):
    """The models of a diagnosis are read, and nothing is aligned between them."""
    with toy("objective=dskd", f"objective.dskd.loss.start={start}") as cfg:
        code, text = diagnosis(cfg)
    assert "Traceback" not in text
    assert code == 0, text
