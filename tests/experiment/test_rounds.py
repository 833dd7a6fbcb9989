"""A loop is a chain of runs: each round elicits with the student of the round before."""

from pathlib import Path

import pytest
import torch

import kd.elicit
from kd.augmentation import Resources
from kd.components.instantiation import instantiate
from kd.composition.check import check
from kd.doctor.subject import composed
from kd.experiment.elicitation import elicit
from kd.experiment.launch import check_launch
from kd.experiment.loading import load_exported, load_student
from kd.experiment.plan import Plan
from kd.experiment.preparation import as_prepared
from kd.experiment.rounds import after_round
from kd.experiment.run import as_read, run
from kd.sweeps.jobs import Job
from kd.teachers.white_box import StudentText
from tests import runs

LOOP = ("augmentation=rest_em", "objective=sft", "compare=null", "evaluation=quick")
STAGE = "augmentation.stages.self_labeling"
SHORT = (f"{STAGE}.samples=2", f"{STAGE}.max_new_tokens=5", f"{STAGE}.batch_size=64", "optim.steps=2")
KEPT = ("augmentation.stages.verified.threshold=0", "augmentation.stages.verified.otherwise=reference")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def loop(rounds: int, *words: str):
    return runs.config(*LOOP, *SHORT, *KEPT, f"loop.rounds={rounds}", "run.root=out", *words)


def test_a_round_of_a_longer_loop_is_the_run_of_a_shorter_one() -> None:
    three, two, one = (Plan.of(loop(n)) for n in (3, 2, 1))
    assert [plan.folder.path for plan in three] == [plan.folder.path for plan in (one, two, three)]
    assert len({plan.folder.config_hash for plan in three}) == 3
    restart, on = Plan.of(loop(2)), Plan.of(loop(2, "loop.student=continue"))
    assert on.folder.config_hash != restart.folder.config_hash
    assert on.before.folder.config_hash == restart.before.folder.config_hash  # the first round starts alike


@pytest.mark.parametrize(("start", "steps"), [("restart", 7), ("continue", 21)])
def test_the_baseline_learns_for_as_many_steps_as_the_student_has(start: str, steps: int) -> None:
    """A student that goes on has learnt in all three rounds; one that restarts, in the last alone."""
    words = ["teacher=tiny", "student=tiny", "teacher.prepare=null", "skill=spell_backward", "skill.train=8"]
    words += ["skill.validation=4", "skill.test=4", "augmentation=rest_em", "optim.steps=7", "trainer=cpu"]
    with composed([*words, "loop.rounds=3", f"loop.student={start}"]) as cfg:
        plan = Plan.of(cfg)
    assert plan.cfg.optim.steps == 7
    assert plan.beside.cfg.optim.steps == steps
    assert plan.beside.cfg.loop.rounds == 1
    assert plan.beside.before is None


def test_a_loop_without_the_students_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loop\.rounds=2 repeats a round in which the student generates nothing"):
        check(runs.config("objective=sft", "loop.rounds=2"))


@pytest.mark.parametrize("start", ["restart", "continue"])
def test_the_second_round_elicits_with_the_student_of_the_first(start: str, capsys: pytest.CaptureFixture) -> None:
    cfg = loop(2, f"loop.student={start}")
    run(cfg, Job([]))
    printed = capsys.readouterr().out
    assert "round 1 of the loop" in printed
    assert "The student after each round" in printed
    plan = Plan.of(cfg)
    first, second = plan
    read = as_read(cfg)
    stage = instantiate(cfg.augmentation.stages.self_labeling)
    student = StudentText(load_exported(cfg, first.folder.path / "student"))
    given = runs.Toy().load("train")
    direct = list(stage(given, Resources(seed=cfg.seed, student=student, student_id="another name")))
    texts = [list(dict.fromkeys(answer.text for answer in record.responses)) for record in direct]
    assert [record.responses[0].text for record in elicit(read).records] == [text for group in texts for text in group]
    assert all(answer.source == "student" for record in elicit(read).records for answer in record.responses)

    begun, trained = load_student(read).state_dict(), student.model.state_dict()
    own = load_student(as_prepared(cfg)).state_dict()
    expected = own if start == "restart" else trained
    assert all(torch.equal(begun[name], expected[name]) for name in expected)

    spent = elicit(read).spent
    assert 0 < spent.generated_tokens <= 2 * 5 * len(given)
    results = second.folder.results()
    assert results["budget"]["generated_tokens"] == spent.generated_tokens
    capsys.readouterr()
    run(cfg, Job([]))
    assert capsys.readouterr().out.count("is DONE: skipped") == 1


def test_the_command_elicits_for_the_last_round(capsys: pytest.CaptureFixture) -> None:
    elicited = kd.elicit.made(loop(2))
    assert "round 1 of the loop" in capsys.readouterr().out
    plan = Plan.of(loop(2))
    assert plan.before.folder.done
    assert elicited.folder == elicit(after_round(as_prepared(plan.cfg), plan.before.folder)).folder
    assert elicited.folder != kd.elicit.made(loop(1)).folder


def test_ranks_from_outside_need_the_rounds_before(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.of(loop(2, "trainer.devices=2", "trainer.strategy=ddp", "optim.window=4"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="round 1 of the loop must be made"):
        check_launch(plan)


def test_a_student_that_was_changed_is_not_read() -> None:
    run(loop(1), Job([]))
    weights = Plan.of(loop(1)).folder.path / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors of a student was changed"):
        run(loop(2), Job([]))
