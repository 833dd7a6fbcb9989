"""The dry run of a grid: every job is composed and checked, and its needs are estimated without weights.

Run: python -m pytest tests/doctor/test_dry_run.py
"""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from kd.components.choices import choices
from kd.composition.overrides import started
from kd.data.rows import Encoded
from kd.data.sequences import collate
from kd.doctor.__main__ import main
from kd.doctor.dry_run import dry_run
from kd.doctor.gpus import gpu, gpus
from kd.doctor.grid import jobs
from kd.doctor.needs import Assumed, Needs, needs
from kd.models.flops import training_flops
from kd.models.networks import scratch

TINY = ("teacher=tiny", "student=tiny", "skill=spell_backward", "trainer=cpu", "compare=null")
H100 = Assumed(gpu("h100-80"))


def config(*overrides: str) -> dict[str, Any]:
    with started(overrides=[*TINY, *overrides]):
        (job,) = jobs([*TINY, *overrides])
        return OmegaConf.to_container(job.cfg, resolve=True)  # type: ignore[return-value]


def of(*overrides: str, assumed: Assumed = H100) -> Needs:
    return needs(config(*overrides), assumed)


# --- grids ---


@pytest.mark.long
def test_the_jobs_of_an_experiment_are_those_of_its_sweep() -> None:
    with started():
        found = list(jobs(["experiment=tiny_grid", "seed=1,2"]))
    assert len(found) == 4 * 2 * 2  # objectives, seeds of the command line, skills
    assert {job.cfg.seed for job in found} == {1, 2}
    assert {job.arm for job in found if job.cfg.skill.task == "spell_backward"} == {
        f"objective={name} skill=spell_backward" for name in ("sft", "fkl", "rkl", "jsd")
    }


def test_a_job_that_cannot_be_run_is_named() -> None:
    with pytest.raises(SystemExit, match=r"^job objective=apo_zero: apo_zero needs rewards") as ended:
        main(["--dry-run", *TINY, "objective=fkl,apo_zero"])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--gpu", "h100"], r"--gpu h100: there is no such GPU; did you mean h100-80\?"),
        (["--utilisation", "1.5"], r"--utilisation 1.5: it is a share"),
        (["--length", "1"], r"--length 1: a record has 2 tokens"),
    ],
)
def test_assumptions_that_cannot_be_are_refused(words: list[str], part: str) -> None:
    with pytest.raises(SystemExit, match=part):
        main(["--dry-run", *words, *TINY])


# --- needs ---


def test_needs_are_those_of_the_networks_that_the_run_would_make() -> None:
    """Student and teacher are made with weights, and what they have is counted."""
    given = config("optim.steps=10", "optim.window=4", "data.max_length=64")
    found = needs(given, H100)
    student, teacher = (
        scratch(**{k: v for k, v in node.items() if k != "_target_"})
        for node in (given["student"]["model"], given["teacher"]["model"])
    )
    assert found.student == found.trained == sum(p.numel() for p in student.parameters())
    assert found.teacher == sum(p.numel() for p in teacher.parameters())
    assert found.tokens == 10 * 4 * 64
    row = collate([Encoded((0,) * 65, 33)], pad=0)  # 32 tokens of prompt, 32 of response
    assert found.flops["student"] == 40 * training_flops(student, row)
    assert found.generated == 0
    assert set(found.memory) == {"training"}
    parts = found.memory["training"]
    assert parts["gradients"] == 4 * found.student
    assert parts["AdamW"] == 2 * parts["gradients"]
    assert found.peak == sum(parts.values())


def test_a_rollout_that_generates_costs_generation_and_a_cache() -> None:
    found = of("rollout=on_policy", "rollout.max_new_tokens=16", "data.max_length=64", "optim.steps=10")
    assert found.generated == 10 * 2 * 16
    assert found.flops["generation"] > 0
    # 2 (keys, values) x 2 layers x 4 heads x 16 numbers x 2 bytes x 2 rows x 64 tokens
    assert found.memory["generation"]["cache"] == 2 * 2 * 4 * 16 * 2 * 2 * 64


def test_without_a_teacher_that_is_read_none_is_counted() -> None:
    assert of("objective=sft").flops["teacher"] == 0
    assert of("objective=fkl").flops["teacher"] > 0
    text = of("objective=sft", "augmentation=sampling").flops  # the teacher generates once, and is not read again
    assert text["teacher"] == 0
    assert text["elicitation"] > 0


def test_a_budget_ends_a_run_before_its_steps() -> None:
    found = of("optim.steps=1000", "data.max_length=64", "budget.tokens=1280")
    assert found.steps == math.ceil(1280 / (2 * 64))


def test_hours_are_flops_over_what_a_gpu_reaches() -> None:
    """Twice the utilisation is half of the time; a preparation is counted once, of its own steps."""
    one, two = (of("optim.steps=100", assumed=Assumed(gpu("h100-80"), share)) for share in (0.2, 0.4))
    assert one.hours == pytest.approx(2 * two.hours)
    seconds = (two.flops["student"] + two.flops["teacher"]) / (gpu("h100-80").float32 * 0.4)
    assert two.hours == pytest.approx(seconds / 3600)
    assert len(two.recipes) == 1  # the teacher's
    assert of("~teacher.prepare.window", "optim.steps=100").preparation == pytest.approx(two.preparation)  # its default


def test_the_tables_state_their_assumptions_and_what_does_not_fit() -> None:
    costs, memory = dry_run([*TINY, "objective=fkl,rkl", "seed=1,2"], H100)
    assert costs.title == "4 jobs, composed and checked"
    assert [row[:2] for row in costs.rows] == [["objective=fkl", "2"], ["objective=rkl", "2"]]
    assert "h100-80 at 40% of its peak" in costs.notes[0]
    assert any(note.startswith("Lengths: each record fills data.max_length") for note in costs.notes)
    assert memory.notes[0] == "h100-80 has 80 GB: every job fits."
    large = ["teacher=pretrained", "teacher.source=hub:Qwen/Qwen3-8B", "student=pretrained"]
    large += ["student.source=hub:Qwen/Qwen3-4B"]
    _, memory = dry_run([*large, "trainer=gpu", "skill=spell_backward"], H100)
    assert "TOO LARGE for it: the run (training)" in memory.notes[0]


def test_gpus_have_plausible_facts() -> None:
    for name, one in gpus().items():
        assert one.memory == pytest.approx(1e9 * float(name.rpartition("-")[2])), name
        assert one.float32 < one.bf16 < 1e16, name
        assert 1e11 < one.bandwidth < 1e13, name


# --- papers at full scale ---


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in choices("experiment") if f"{name}_tiny" in choices("experiment")])
def test_every_table_at_full_scale_is_composed_and_estimated(name: str) -> None:
    """With one seed: the others differ in it alone."""
    costs, memory = dry_run([f"experiment={name}", "seed=1"], H100)
    assert len(costs.rows) > 1
    assert all("←" in row[2] for row in costs.rows)  # each has a teacher of known size
    assert len(memory.rows) >= len(costs.rows)
