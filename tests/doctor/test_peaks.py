"""The phases of a built run beside its training, where models are divided among processes.

Run: python -m pytest tests/doctor/test_peaks.py
"""

import copy
from dataclasses import replace

import pytest
import torch
from omegaconf import open_dict

from kd.doctor import memory
from kd.doctor.memory import Item
from kd.doctor.peaks import check_devices, check_room, phases
from kd.doctor.subject import admit
from kd.experiment.checks import Subject
from kd.rewards.teacher_score import TeacherScore
from kd.rollouts.on_policy import OnPolicy
from kd.teachers.white_box import WhiteBox
from kd.types import Models
from tests.doctor.subjects import altered, diagnosis, line, toy

# conf/student/tiny.yaml over 261 ids: embedding (and head); blocks of 4 x 64 x 64 + 3 x 64 x 192 + 2 x 64; a norm
STUDENT = 261 * 64 + 2 * 53376 + 64
# conf/teacher/tiny.yaml: 128 wide, 384 inside, 4 blocks of 4 x 128 x 128 + 3 x 128 x 384 + 2 x 128
TEACHER = 261 * 128 + 4 * 213248 + 128
ROTARY = 200  # bytes of buffers at most
TWO = ("trainer.strategy=fsdp2", "trainer.devices=2", "trainer.precision=32-true", "checkpoint.answers=0")
AS_TEXT = ("evaluation.items=0", "evaluation.answers=0")


def sizes(items: list[Item]) -> dict[str, int]:
    return {item.name: item.size for item in items}


def generating(subject: Subject, **models: object) -> Subject:
    """The same with a rollout that generates, on a copy of the module."""
    found = replace(subject, parts=replace(subject.parts, module=copy.copy(subject.parts.module)))
    module = found.parts.module
    module.rollout = OnPolicy(samples=2, max_new_tokens=9)
    module.models = Models(module.student, WhiteBox(subject.parts.teacher))._replace(**models)
    return found


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def test_what_is_whole_in_training_has_no_other_phase(subject: Subject) -> None:
    assert list(phases(subject)) == ["train"]
    assert list(phases(altered(subject, "trainer.devices=2", "trainer.strategy=ddp"))) == ["train"]


def test_an_evaluation_has_whole_models_on_one_gpu(subject: Subject, eight_gpus: None) -> None:
    gpus = (*TWO, "trainer.accelerator=gpu", "trainer.devices=8")
    found = phases(altered(subject, *gpus))
    assert list(found) == ["evaluate", "train"]
    whole = sizes(found["evaluate"])
    assert 0 <= whole["student"] - 4 * STUDENT <= ROTARY
    assert 0 <= whole["teacher"] - 4 * TEACHER <= ROTARY
    assert sizes(found["train"])["teacher"] == whole["teacher"] // 8
    for only in ("items", "answers"):  # either is measured on whole models
        assert "evaluate" in phases(altered(subject, *gpus, f"evaluation.{only}=0"))
    assert list(phases(altered(subject, *gpus, *AS_TEXT))) == ["train"]


def test_a_teacher_in_host_memory_is_on_the_gpu_for_the_evaluation(subject: Subject, eight_gpus: None) -> None:
    one = altered(subject, *TWO, "trainer.accelerator=gpu", "trainer.devices=1")
    with open_dict(one.cfg):
        one.cfg.trainer.sharding = {"offload_teacher": True}
    found = phases(one)
    assert "teacher" not in sizes(found["train"])
    assert 0 <= sizes(found["evaluate"])["teacher"] - 4 * TEACHER <= ROTARY


def test_zero_makes_the_student_whole_for_the_evaluation(subject: Subject, eight_gpus: None) -> None:
    zero = ("trainer.accelerator=gpu", "trainer.devices=8", "trainer.strategy=deepspeed_stage_3", *AS_TEXT)
    found = phases(altered(subject, *zero))
    assert list(found) == ["evaluate", "train"]  # its models are placed whether anything is measured or not
    assert sizes(found["train"])["student"] == sizes(found["evaluate"])["student"] // 8


def test_gathered_blocks_are_all_kept_under_a_term_on_attention_and_none_of_a_whole_teacher(subject: Subject) -> None:
    """Blocks of 53376 numbers, 16768 at the student's ends; of the teacher 2 of 213248, and 33536 at its ends."""
    two = altered(subject, *TWO)
    layers = "student.model.architecture.num_hidden_layers=4"
    for objective, blocks in (("fkl", 2 + 2), ("attention_kl", 4 + 2)):
        with toy(layers, f"objective={objective}") as cfg:
            found = sizes(memory.estimate(altered(admit(cfg), *TWO)))["gathered"]
        assert 0 <= found - 4 * (16768 + blocks * 53376 + 33536 + 2 * 213248) <= 2 * ROTARY
    zero = sizes(memory.estimate(altered(two, "trainer.strategy=deepspeed_stage_3")))
    assert 0 <= zero["gathered"] - 4 * (16768 + 4 * 53376) <= ROTARY
    assert 0 <= zero["teacher"] - 4 * TEACHER <= ROTARY


def test_each_process_of_a_cpu_loads_all_models(subject: Subject) -> None:
    """Two processes: twice 4 x (STUDENT + TEACHER) bytes, before any of them has a part alone."""
    found = phases(altered(subject, *TWO))
    assert list(found) == ["load", "evaluate", "train"]
    [whole] = found["load"]
    assert 0 <= whole.size - 4 * (STUDENT + TEACHER) <= 2 * ROTARY
    two, small = altered(subject, *TWO), {**found, "train": [Item("student", 1, "")]}
    assert check_room(small, 2 * whole.size - 1, two).verdict == "FAIL"
    finding = check_room(small, 2 * whole.size, two)
    assert finding.verdict == "WARN"
    assert finding.fact.endswith("available in the phase load, on 2 ranks together")
    assert finding.remedy.startswith("most of it is all models: fewer processes (trainer.devices)")


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-mixed", 2)])
def test_a_rollout_that_generates_gathers_the_student(subject: Subject, precision: str, size: int) -> None:
    """In the type that is computed in, beside half of all weights and moments; there are no gradients."""
    found = phases(altered(generating(subject), *TWO, f"trainer.precision={precision}"))
    train, held = sizes(found["train"]), sizes(found["generate"])
    assert set(held) == {"student", "teacher", "AdamW", "whole student", "whole models"}
    for name in ("student", "teacher", "AdamW"):
        assert held[name] == train[name]
    assert held["AdamW"] == 2 * 4 * STUDENT // 2
    assert 0 <= held["whole student"] - size * STUDENT <= ROTARY


def test_a_teacher_that_scores_is_gathered_too(subject: Subject) -> None:
    held = sizes(phases(altered(generating(subject, reward=TeacherScore()), *TWO))["generate"])
    assert 0 <= held["whole teacher"] - 4 * TEACHER <= ROTARY
    assert 0 <= held["whole student"] - 4 * STUDENT <= ROTARY


def test_scores_of_a_validation_gather_the_student(subject: Subject) -> None:
    held = sizes(phases(altered(subject, *TWO, "checkpoint.answers=4"))["generate"])
    assert 0 <= held["whole student"] - 4 * STUDENT <= ROTARY
    assert "whole teacher" not in held


def test_the_largest_phase_counts_and_is_named(subject: Subject) -> None:
    found = {"train": [Item("activations", 70, "")], "evaluate": [Item("teacher", 90, "", once=True)]}
    assert check_room(found, 120, subject).verdict == "PASS"
    assert check_room(found, 100, subject).verdict == "WARN"
    finding = check_room(found, 89, subject)
    assert finding.verdict == "FAIL"
    assert finding.fact.endswith("available in the phase evaluate")
    assert finding.remedy.startswith("most of it is teacher: evaluation=none")
    two = altered(subject, "trainer.devices=2")
    assert check_room(found, 140, two).fact.endswith("in the phase train, on 2 ranks together")  # 2 x 70, once 90


def test_all_gpus_of_the_machine_count(subject: Subject, eight_gpus: None) -> None:
    whole = sizes(memory.estimate(altered(subject, "trainer.accelerator=gpu")))
    for devices in ("auto", "-1", "'-1'"):
        all_of_them = altered(subject, *TWO, "trainer.accelerator=gpu", f"trainer.devices={devices}")
        found = sizes(memory.estimate(all_of_them))
        assert 0 <= whole["student"] - 4 * STUDENT <= ROTARY
        assert found["student"] == whole["student"] // 8
        assert found["AdamW"] == 2 * 4 * STUDENT // 8
        assert check_devices(all_of_them.cfg) == []
    listed = altered(subject, *TWO, "trainer.accelerator=gpu", "trainer.devices=[0, 3]")
    assert sizes(memory.estimate(listed))["student"] == whole["student"] // 2


def test_the_number_of_another_machines_devices_is_a_finding() -> None:
    with toy("trainer=fsdp") as cfg:
        code, text = diagnosis(cfg)
    sentence = "The number of devices depends on the machine and counts as one; give it, as trainer.devices=8"
    assert line(text, "devices").endswith(sentence)
    assert code == 0
    with toy("trainer=fsdp", "trainer.devices=2") as cfg:
        text = diagnosis(cfg)[1]
    assert "devices depends" not in text
    assert "phase evaluate" in text
