"""The dry run of a grid: every job is composed and checked, and its needs are estimated without weights.

Run: python -m pytest tests/doctor/test_dry_run.py
"""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from kd.components.choices import choices
from kd.composition.overrides import started
from kd.data.rows import Encoded
from kd.data.sequences import collate
from kd.doctor.__main__ import main
from kd.doctor.dry_run import _costs, dry_run
from kd.doctor.gpus import gpu, gpus
from kd.doctor.grid import GridJob, jobs
from kd.doctor.needs import Needs, needs
from kd.doctor.workload import Assumed
from kd.models.flops import training_flops
from kd.models.networks import scratch
from kd.reports.grid import Grid
from kd.reports.render import terminal

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
    assert list(found.memory) == ["prepare teacher", "train", "evaluate"]
    parts = found.memory["train"]
    assert parts["gradients"] == 4 * found.student
    assert parts["AdamW"] == 2 * parts["gradients"]
    assert found.peak == max(sum(each.values()) for each in found.memory.values())


def test_a_rollout_that_generates_costs_generation_and_a_cache() -> None:
    found = of("rollout=on_policy", "rollout.max_new_tokens=16", "data.max_length=64", "optim.steps=10")
    assert found.generated == 10 * 2 * 16
    assert found.flops["generation"] > 0
    # 2 (keys, values) x 2 layers x 4 heads x 16 numbers x 4 bytes x 2 rows x 64 tokens
    assert found.memory["generate"]["cache"] == 2 * 2 * 4 * 16 * 4 * 2 * 64


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


def test_the_model_that_generates_is_the_innermost_rollout_s() -> None:
    """A wrapper generates nothing; what both models choose is one response; a replayed one is not generated again."""
    small = ("data.max_length=64", "optim.steps=10", "optim.window=4")
    mixed = of("rollout=mixed", "rollout.writer._target_=kd.rollouts.teacher.ByTeacher", *small)
    alone = of("rollout=teacher", *small)
    assert mixed.flops["generation"] == alone.flops["generation"]
    assert mixed.memory["generate"]["cache"] == alone.memory["generate"]["cache"]
    student = of("rollout=on_policy", *small)
    both = of("rollout=teacher_mixed", *small)
    assert both.generated == student.generated == 10 * 4 * 32
    assert both.flops["generation"] == pytest.approx(alone.flops["generation"] + student.flops["generation"])
    replayed = of("rollout=teacher_mixed_replay", "rollout.uses=4", *small)
    assert replayed.flops["generation"] == pytest.approx(both.flops["generation"] / 4)
    assert replayed.flops["student"] == both.flops["student"]


def test_a_group_reads_its_prompt_once_and_trains_on_what_is_kept_of_it() -> None:
    small = ("data.max_length=64", "optim.steps=10", "optim.window=4")
    one, four = (of("rollout=on_policy", f"rollout.samples={n}", *small) for n in (1, 4))
    assert four.flops["student"] == 4 * one.flops["student"]
    assert 2 * one.flops["generation"] < four.flops["generation"] < 4 * one.flops["generation"]
    ranked = ("rollout=ranked", "reward=verifier", "objective=dpo")
    assert of(*ranked, *small).flops["student"] == 2 * one.flops["student"]  # the best and the worst of four
    assert of(*ranked, *small).generated == four.generated


def test_each_budget_counts_what_the_run_counts() -> None:
    small = ("data.max_length=64", "optim.steps=1000", "optim.window=4", "objective=sft")
    both = of("rollout=teacher_mixed", *small)
    own = both.flops["student"] + of("rollout=on_policy", *small).flops["generation"]  # not the teacher's share
    assert of("rollout=teacher_mixed", *small, f"budget.student_flops={own / 10}").steps == 100
    assert of("rollout=teacher", *small, "budget.teacher_tokens=2560").steps == 10  # read to generate
    seconds = 3600 * both.hours
    assert of("rollout=teacher_mixed", *small, f"budget.seconds={seconds / 10}").steps == pytest.approx(100, abs=1)


def test_a_budget_of_generated_tokens_is_of_the_student_s_alone() -> None:
    """2 rows of 16 tokens are generated at each step."""
    small = ("rollout.max_new_tokens=16", "data.max_length=64", "optim.steps=100", "budget.generated_tokens=320")
    assert of("rollout=on_policy", *small).steps == 10
    assert of("rollout=teacher", *small).steps == 100


def test_generation_takes_the_time_to_read_the_weights_for_each_token() -> None:
    """10 steps of 16 tokens, in one batch of both rows or in two; 4 bytes a weight. Its FLOPs take a fifth of that."""
    h100, small = gpu("h100-80"), ("rollout.max_new_tokens=16", "data.max_length=64", "optim.steps=10")
    for size, batches in ((16, 1), (1, 2)):
        found = of("rollout=on_policy", f"rollout.batch_size={size}", *small)
        assert found.flops["generation"] > 0
        counted = (found.flops["student"] + found.flops["teacher"]) / (0.4 * h100.float32)
        reading = 10 * batches * 16 * 4 * found.student / (0.4 * h100.bandwidth)
        assert found.hours == pytest.approx((counted + reading) / 3600)


def test_activations_are_those_of_a_micro_batch() -> None:
    """Of 4 rows of 64 tokens, data.max_tokens lets 1, 2 or 4 be read at once."""
    rows = [of("optim.window=4", "data.max_length=64", f"data.max_tokens={n}") for n in (64, 128, 256, 512)]
    one, two, four, more = (found.memory["train"]["activations"] for found in rows)
    assert (two, four, more) == pytest.approx((2 * one, 4 * one, 4 * one))


def test_stages_read_all_records_on_one_device_each_by_its_own_length() -> None:
    """Elicitation precedes the process group: devices share training alone."""
    small = ("objective=sft", "data.max_length=64", "optim.steps=10", "augmentation=sampling", "skill.train=100")
    stage = "augmentation.stages.sampling"
    one = of(*small)
    assert of(*small, "skill.train=200").flops["elicitation"] == 2 * one.flops["elicitation"]
    assert of(*small, f"{stage}.max_new_tokens=4").flops["elicitation"] < one.flops["elicitation"]
    many = of(*small, f"{stage}.samples=3")
    assert 2 * one.flops["elicitation"] < many.flops["elicitation"] < 3 * one.flops["elicitation"]
    plain = of(*small[:3])
    two = of(*small, "trainer=ddp_cpu")
    assert two.devices == 2
    assert two.hours - plain.hours / 2 == pytest.approx(one.hours - plain.hours)


def test_a_teacher_made_of_the_student_is_read_and_a_copy_of_what_is_trained() -> None:
    small = ("rollout=privileged_self", "data.max_length=64", "optim.steps=10")
    ema, live = (of("teacher=own", f"teacher.mode={mode}", *small) for mode in ("ema", "live"))
    assert ema.flops["teacher"] == live.flops["teacher"] > 0
    assert ema.memory["train"]["teacher"] == ema.memory["train"]["gradients"]
    assert live.memory["train"]["teacher"] == 0


def test_where_student_and_teacher_generate_apart_both_are_counted() -> None:
    small = ("data.max_length=64", "optim.steps=10")
    names = ("on_policy", "teacher", "refined")
    one, other, both = (of(f"rollout={name}", *small).flops["generation"] for name in names)
    assert both == one + other > other > one > 0


def test_cached_targets_leave_the_teacher_unloaded() -> None:
    whole, cached = (config("targets=topk", f"targets.cached={flag}") for flag in ("false", "true"))
    assert needs(whole, H100).memory["train"]["teacher"] > 0
    found = needs(cached, H100)
    assert found.flops["teacher"] == found.memory["train"]["teacher"] == 0


def test_all_devices_of_all_machines_share_a_step() -> None:
    given = config("optim.window=16")
    one, eight = (needs({**given, "trainer": {**given["trainer"], "devices": 4, "num_nodes": n}}, H100) for n in (1, 2))
    assert (one.devices, eight.devices) == (4, 8)
    assert one.hours == pytest.approx(2 * eight.hours)


def test_runs_beside_the_jobs_count_once_and_a_job_that_is_one_not_again() -> None:
    words = [word for word in TINY if not word.startswith("compare")]
    compared, _ = dry_run([*words, "objective=fkl,rkl", "seed=1,2", "compare=sft"], H100)
    assert "for 2 runs beside (compare)" in compared.notes[0]  # one for each seed
    own, _ = dry_run([*words, "objective=fkl,sft", "compare=sft"], H100)
    assert "runs beside" not in own.notes[0]


def test_the_tables_state_their_assumptions_and_what_does_not_fit() -> None:
    costs, memory = dry_run([*TINY, "objective=fkl,rkl", "seed=1,2"], H100)
    assert costs.title == "4 jobs, composed and checked"
    assert [row[:2] for row in costs.rows] == [["objective=fkl", "2"], ["objective=rkl", "2"]]
    assert "h100-80 at 40% of its peak" in costs.notes[0]
    assert "runs beside" not in costs.notes[0]
    assert any(note.startswith("Lengths: each record fills data.max_length") for note in costs.notes)
    assert memory.notes[0] == "h100-80 has 80 GiB, 78 beside what PyTorch takes: every phase fits."
    for row in memory.rows:
        assert row[-1].value == pytest.approx(sum(cell.value or 0 for cell in row[2:-1]))  # type: ignore[attr-defined]
    large = ["teacher=pretrained", "teacher.source=hub:Qwen/Qwen3-8B", "student=pretrained"]
    large += ["student.source=hub:Qwen/Qwen3-4B"]
    _, memory = dry_run([*large, "trainer=gpu", "skill=spell_backward"], H100)
    assert "TOO LARGE for it: train (" in memory.notes[0]
    assert "most of it is" in memory.notes[0]


def test_totals_are_of_jobs_runs_beside_and_preparations() -> None:
    """2 × 2 + 1 + 0.5 hours; on 4 devices, on one, and on one: 2 × 2 × 4 + 1 + 0.5 GPU hours."""

    def need(hours: float, devices: int) -> Needs:
        flops = {"student": 1.0, "teacher": 2e13, "generation": 3.0, "elicitation": 4.0}
        facts = {"student": 124_000_000, "trained": 1_000, "teacher": 1_560_000_000, "steps": 1, "generated": 0}
        more = {"memory": {}, "hours": hours, "devices": devices, "recipes": {"teacher": 0.5}}
        return Needs(tokens=7_000, flops=flops, **facts, **more)  # type: ignore[arg-type]

    job = GridJob((), OmegaConf.create())  # of which nothing is shown
    grid = _costs({"objective=fkl rollout=mixed": [(job, need(2.0, 4))] * 2}, [need(1.0, 1)], H100)
    assert grid.notes[0] == (
        "In total 5.5 hours on 4 × h100-80 at 40% of its peak, with 0.5 for 1 preparations and 1.0 for 1 runs beside "
        "(compare); 17.5 GPU hours."
    )
    sizes = "124 M\n(1 k\ntrained)\n← 1.56 B"
    assert grid.rows == [["objective=fkl\nrollout=mixed", "2", sizes, "7 k", "1", "2.0e13", "7", "2.0"]]


def in_80_columns(grid: Grid) -> str:
    """The table in a terminal, none of whose lines is wider."""
    console = Console(width=80)
    with console.capture() as printed:
        console.print(terminal(grid, 80))
    assert max(map(len, printed.get().splitlines())) <= 80
    return printed.get()


def test_both_tables_have_all_columns_beside_one_another_in_80_columns() -> None:
    """Overrides of a job, and the sizes of its models, stand below one another."""
    words = ["objective=jsd", "objective.jsd.loss.beta=0.1,0.5", "optim.steps=1000000,2000000", "rollout=on_policy"]
    costs, memory = dry_run([*TINY, *words], H100)
    for grid, first, last in ((costs, "tokens", "hours"), (memory, "student", "sum")):
        lines = in_80_columns(grid).splitlines()
        assert any(first in line and last in line for line in lines), grid.title
        assert any("objective.jsd.loss.beta=0.1" in line for line in lines)
    assert [row[1] for row in memory.rows] == ["prepare teacher", "generate", "train", "evaluate"] * 4


def test_gpus_have_plausible_facts() -> None:
    for name, one in gpus().items():
        named = 2**30 * float(name.rpartition("-")[2])
        assert 0.9 * named < one.memory <= named, name  # less what error correction takes
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
    assert {"student", "teacher", "state", "working", "sum"} <= {*in_80_columns(memory).split()}
    in_80_columns(costs)
