"""The student as its own teacher: what it is made of, how it follows, and that nothing flows back.

Run: python -m pytest tests/teachers/test_self_teacher.py
"""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig
from torch import Tensor

from kd.composition.check import check
from kd.data.sequences import Encoder
from kd.experiment.build import build, fit
from kd.generators.generation import generate
from kd.models.digests import weights_digest
from kd.models.language_model import LanguageModel
from kd.models.networks import _with_lora
from kd.objectives.reduction import Counts, count
from kd.teachers.self_teacher import Own
from kd.teachers.white_box import WhiteBox
from tests import runs
from tests.tiny import records, tiny

FIELDS = frozenset({"logits", "logprobs", "hidden", "embeddings", "head"})
MODES = ["frozen", "ema", "live"]


def own(student: LanguageModel, mode: str, decay: float = 0.9) -> Own:
    teacher = Own(mode=mode, decay=decay)
    teacher.bind(student)
    return teacher


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def move(student: LanguageModel, seed: int) -> None:
    """A step somewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def with_lora(seed: int = 0) -> LanguageModel:
    model = tiny(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.5)
    return LanguageModel(_with_lora(model.network, config), model.tokenizer)


def batch():
    [made] = Encoder(tiny().tokenizer, None, max_length=200, max_tokens=10_000, max_padding=1.0).batches(records(3))
    return made


def said(teacher, fields=FIELDS) -> Tensor:
    output = teacher(batch().teacher, fields)
    return output.logits.rows(slice(0, output.logits.n))


# ---- what it is at each step -----------------------------------------------------------------------------------------


def test_an_average_by_hand():
    """0.9 (0.9 a + 0.1 b) + 0.1 c = 0.81 a + 0.09 b + 0.1 c."""
    student = tiny()
    teacher, way = own(student, "ema"), [weights(student)]
    for seed in (1, 2):
        move(student, seed)
        teacher.after_step(student)
        way.append(weights(student))
    for name, average in weights(teacher.model).items():
        torch.testing.assert_close(average, 0.81 * way[0][name] + 0.09 * way[1][name] + 0.1 * way[2][name])


@pytest.mark.parametrize("mode", MODES)
def test_what_follows_and_what_stays(mode):
    student = tiny()
    first = weights(student)
    teacher = own(student, mode)
    torch.testing.assert_close(said(teacher), said(WhiteBox(tiny())))
    move(student, 1)
    teacher.after_step(student)
    now = weights(teacher.model)
    same = {"frozen": first, "live": weights(student)}.get(mode)
    if same is not None:
        torch.testing.assert_close(now, same, rtol=0, atol=0)
    else:
        assert all(not torch.equal(now[name], other[name]) for other in (first, weights(student)) for name in now)


def test_an_average_that_keeps_nothing_is_the_student_after_the_last_step():
    student = tiny()
    teacher = own(student, "ema", decay=0.0)
    move(student, 1)
    teacher.after_step(student)
    torch.testing.assert_close(weights(teacher.model), weights(student))


# ---- nothing flows back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_no_field_that_it_fills_has_a_gradient(mode):
    student = tiny().train()
    output = own(student, mode)(batch().teacher, FIELDS)
    told = [output.logprobs, *output.hidden, output.embeddings, output.head.weight]
    assert not any(each.requires_grad for each in [*told, output.logits.rows(slice(0, 4))])


@pytest.mark.parametrize("mode", MODES)
def test_the_students_gradient_is_that_of_another_teacher_with_the_same_weights(mode):
    objective = {"fkl": runs.MIXED["fkl"]}
    cfg = runs.config(*runs.EXACT, "alignment=same", objective=objective, teacher=node(mode))
    parts = build(cfg)
    move(parts.module.student, 3)  # away from where divergence and gradient are zero
    parts.module.models.teacher.after_step(parts.module.student)
    found = gradient(parts)
    other = WhiteBox(copy.deepcopy(parts.module.models.teacher.model))
    parts.module.models = parts.module.models._replace(teacher=other)
    expected = gradient(parts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in other.parameters())


def gradient(parts) -> dict[str, Tensor]:
    module, made = parts.module, batch()
    module.zero_grad()
    module.loss(made, module.observe(made), Counts(*count([made]).tolist())).backward()
    return {name: p.grad.clone() for name, p in module.student.named_parameters()}


def node(mode: str = "ema", decay: float = 0.5) -> dict:
    return {**OmegaConf.load(runs.CONF / "teacher/own.yaml"), "mode": mode, "decay": decay}


@pytest.mark.parametrize("mode", MODES)
def test_it_reads_without_dropout_and_leaves_the_student_as_it_was(mode):
    student = tiny(attention_dropout=0.9).train()
    student.network.model.norm.eval()
    modes = {name: module.training for name, module in student.named_modules()}
    teacher = own(student, mode).train()
    assert torch.equal(said(teacher), said(teacher))
    assert {name: module.training for name, module in student.named_modules()} == modes
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher.training


def test_autocast_remembers_nothing_of_what_a_live_teacher_read():
    """Else the student would train on weights that were cast without gradient."""
    student = tiny(dtype="float32").train()
    teacher = own(student, "live")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said(teacher)
        student(batch().student, frozenset({"logits"})).logits.rows(slice(0, 9)).float().sum().backward()
    assert all(p.grad is not None for p in student.network.model.layers.parameters())


def test_it_writes():
    student = tiny()
    prompt = [[1, 2, 3]]
    for mode in MODES:
        assert generate(own(student, mode).model, prompt, max_new_tokens=5) == generate(
            student, prompt, max_new_tokens=5
        )


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["frozen", "ema"])
def test_under_lora_only_the_adapters_are_copied(mode):
    student = with_lora()
    teacher = own(student, mode)
    ours, theirs = (dict(model.named_parameters()) for model in (student, teacher.model))
    shared = {name for name in ours if ours[name] is theirs[name]}
    assert shared == {name for name in ours if "lora_" not in name}
    before = said(teacher)
    move(student, 1)
    torch.testing.assert_close(said(teacher), before, rtol=0, atol=0)
    teacher.after_step(student)
    assert torch.equal(said(teacher), before) == (mode == "frozen")
    assert all(ours[name].requires_grad == ("lora_" in name) for name in ours)
    assert all("lora_" in name for name in teacher.carried_state())


def test_what_is_shared_moves_with_the_student():
    student = with_lora()
    teacher = own(student, "ema")
    student.to(torch.float32)
    assert {p.dtype for name, p in teacher.model.named_parameters() if "lora_" not in name} == {torch.float32}


# ---- state -----------------------------------------------------------------------------------------------------------


def test_an_average_goes_on_from_what_it_carried(tmp_path):
    student = tiny()
    teacher = own(student, "ema")
    move(student, 1)
    teacher.after_step(student)
    torch.save(teacher.carried_state(), tmp_path / "state.pt")
    resumed = own(tiny(), "ema")
    resumed.load_carried_state(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(weights(resumed.model), weights(teacher.model), rtol=0, atol=0)
    assert not any(p.requires_grad for p in resumed.model.parameters())


@pytest.mark.parametrize("mode", ["frozen", "live"])
def test_others_carry_nothing(mode):
    teacher = own(tiny(), mode)
    assert teacher.carried_state() == {}
    teacher.load_carried_state({})


def test_a_state_of_another_kind_is_refused():
    state = own(tiny(), "ema").carried_state()
    with pytest.raises(ValueError, match=r"averages of \d+ weights and teacher.mode=frozen has 0 .*resume with"):
        own(tiny(), "frozen").load_carried_state(state)


def test_it_needs_a_student():
    with pytest.raises(ValueError, match="teacher Own has no student yet"):
        _ = Own().model


def test_an_average_that_would_be_rounded_away_is_refused():
    with pytest.raises(ValueError, match=r"teacher.mode=ema, but the student's .* is bfloat16.*model.dtype=float32"):
        own(tiny(dtype="bfloat16"), "ema")
    own(tiny(dtype="bfloat16"), "frozen")


# ---- in a run --------------------------------------------------------------------------------------------------------


def test_each_run_has_its_own_and_it_is_no_other_system():
    cfg = runs.config(teacher=node())
    first, second = build(cfg), build(cfg)
    assert first.module.models.teacher is not second.module.models.teacher
    assert first.teacher is None  # nothing to measure beside the student


def test_a_frozen_one_is_the_first_student_to_the_end(tmp_path):
    cfg = runs.config(*runs.EXACT, "optim.steps=4", objective=runs.MIXED, teacher=node("frozen"))
    initial = weights_digest(build(cfg).module.student)
    parts = runs.train(cfg, tmp_path)
    assert weights_digest(parts.module.models.teacher.model) == initial != weights_digest(parts.module.student)


def test_an_average_follows_a_run(tmp_path):
    """By hand from each step's weights."""
    cfg = runs.config(*runs.EXACT, "optim.steps=3", objective=runs.MIXED, teacher=node())
    parts = build(cfg)
    teacher, way = parts.module.models.teacher, [weights(parts.module.student)]
    follow = teacher.after_step
    teacher.after_step = lambda student: (follow(student), way.append(weights(student)))
    fit(cfg, parts, runs.started(tmp_path))
    assert len(way) == 4
    for name, average in weights(teacher.model).items():
        by_hand = 0.125 * way[0][name] + 0.125 * way[1][name] + 0.25 * way[2][name] + 0.5 * way[3][name]
        torch.testing.assert_close(average, by_hand)


def test_an_average_is_resumed(tmp_path):
    """A run that was stopped and went on ends with the teacher of one that was not."""
    ended = {}
    for name, signals in (("whole", []), ("stopped", [(5, 0, "SIGTERM")])):
        path = tmp_path / name
        path.mkdir()
        script = {"_target_": "tests.runs.Scripted", "log": str(path), "signals": signals}
        cfg = runs.config(*runs.EXACT, objective=runs.MIXED, rollout=script, teacher=node())
        if signals:
            with pytest.raises(SystemExit):
                runs.train(cfg, path)
            cfg.rollout.signals = []
        ended[name] = weights(runs.train(cfg, path).module.models.teacher.model)
    torch.testing.assert_close(ended["stopped"], ended["whole"], rtol=0, atol=0)


def test_what_does_not_go_with_it_is_refused():
    check(runs.config(teacher=node()))
    with pytest.raises(ValueError, match=r"teacher.decay=1.0"):
        check(runs.config(teacher=node(decay=1.0)))
    with pytest.raises(ValueError, match=r"targets TopK keeps a part of a teacher's output, but .* take targets=full"):
        check(runs.config("targets=topk", teacher=node()))
