"""The audit's numbers against arithmetic, and against the whole-vocabulary loss computed apart."""

import math
from functools import partial

import pytest
import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

import kd.cache
from kd.composition.targets import check_targets
from kd.experiment.build import build
from kd.kernels.logits import DenseLogits, HeadLogits
from kd.kernels.sparse import SparseLogits, evaluated
from kd.objectives.divergence import cross_entropy, forward_kl, total_variation
from kd.teachers.targets import Sampled, TopK
from kd.training.target_audit import Audit, audited, compared, overlap
from kd.training.terms import Term
from kd.types import Head, Progress
from tests import runs

N, D, V = 11, 4, 9


def world() -> tuple[HeadLogits, DenseLogits]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return HeadLogits(draw(N, D), Head(draw(V, D))), DenseLogits(2 * draw(N, V))


@pytest.mark.parametrize("targets", [TopK(k=3), TopK(k=3, tail="zero"), Sampled(draws=4)])
@pytest.mark.parametrize("loss", [forward_kl, partial(forward_kl, temperature=1.0, temperature_squared=True)])
def test_numbers_are_those_of_two_backward_passes(targets, loss):
    student, teacher = world()
    kept = targets.read(targets.columns(teacher, torch.Generator().manual_seed(0)), V)
    numbers = compared(
        {"a": Term(loss), "sft": Term(cross_entropy)}, student, kept, teacher, {"progress": Progress(1, 2)}
    )
    results = []
    for logits in (kept, teacher.values):
        hidden = student.hidden.clone().requires_grad_()
        given = {"student_logits": hidden @ student.head.weight.T, "teacher_logits": logits}
        value = evaluated(loss, given)[0].mean()
        results.append((value.item(), torch.autograd.grad(value, hidden)[0].flatten()))
    (value, g), (whole, g_whole) = results
    expected = {
        "a_bias": (value - whole) / abs(whole),
        "a_gradient_error": ((g - g_whole).norm() / g_whole.norm()).item(),
        "a_gradient_norm": (g.norm() / g_whole.norm()).item(),
        "a_gradient_cosine": torch.nn.functional.cosine_similarity(g, g_whole, dim=0).item(),
    }
    p = teacher.values.softmax(-1)
    mass = [sum(row[i] for i in set(ids) if i >= 0) for row, ids in zip(p.tolist(), kept.ids.tolist(), strict=True)]
    assert numbers["teacher_mass"] == pytest.approx(sum(mass) / N, rel=1e-5)
    assert numbers.keys() == {*expected, "teacher_mass", "overlap"}
    for name, number in expected.items():
        assert numbers[name] == pytest.approx(number, rel=1e-4, abs=1e-6), name
    assert abs(numbers["a_bias"]) > 1e-3


def test_overlap_by_hand():
    """Held {0, 1} and the student's two most probable {1, 2}: one half; held {2} alone and its one, {2}: all."""
    head = Head(torch.eye(4))
    student = HeadLogits(torch.tensor([[0.0, 3.0, 2.0, 1.0], [0.0, 1.0, 3.0, 2.0], [3.0, 1.0, 0.0, 2.0]]), head)
    ids = torch.tensor([[0, 1], [2, -1], [2, -1]])
    kept = SparseLogits(ids, torch.zeros(3, 2), torch.zeros(3), 4, "sampled", weights=torch.ones(3, 2))
    assert overlap(student, kept).tolist() == [0.5, 1.0, 0.0]


def test_keeping_every_id_is_no_approximation():
    student, teacher = world()
    targets = TopK(k=V)
    kept = targets.read(targets.columns(teacher), V)
    numbers = compared({"tvd": Term(total_variation)}, student, kept, teacher, {"progress": Progress(1, 2)})
    assert numbers["tvd_bias"] == pytest.approx(0, abs=1e-5)
    assert numbers["tvd_gradient_error"] == pytest.approx(0, abs=1e-5)
    assert numbers["tvd_gradient_cosine"] == numbers["teacher_mass"] == numbers["overlap"] == pytest.approx(1, abs=1e-5)


WORDS = ("targets=topk", "targets.k=4", "targets.audit.every=4", "targets.dtype=float32")


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_logs_it_every_few_steps_and_at_its_end(cached, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    if cached:
        kd.cache.write(runs.config(*WORDS))
    parts = runs.train(runs.config(*WORDS, f"targets.cached={str(cached).lower()}"), tmp_path / "run")
    numbers = {key: float(value) for key, value in runs.metrics(tmp_path / "run").items() if ",audit," in key}
    assert {key.split(",")[0] for key in numbers} == {"4", "8", "10"}
    last = audited(parts.module, parts.data.validation[:2])
    for name, value in last.items():
        assert numbers[f"10,audit,{name}"] == pytest.approx(value, rel=1e-4)
    assert last["fkl_bias"] < -1e-3  # a bucket hides what differs inside it
    assert math.isclose(last["teacher_mass"], numbers["4,audit,teacher_mass"], rel_tol=1e-6)


def test_an_audit_changes_nothing(tmp_path):
    """Nor what the run draws, nor the student's mode: with dropout and sampled targets, bit for bit."""
    words = ["targets=sampled", "targets.draws=5", runs.DROPOUT]
    runs.train(runs.config(*words, "targets.audit.every=1"), tmp_path / "with")
    runs.train(runs.config(*words, "targets.audit=null"), tmp_path / "without")
    one, other = (runs.metrics(tmp_path / name) for name in ("with", "without"))
    assert {key: value for key, value in one.items() if ",audit," not in key} == other
    assert runs.finals(tmp_path / "with").keys() == runs.finals(tmp_path / "without").keys()


def test_audits_are_made_as_the_config_states():
    from kd.training.trainer import audits

    assert audits(runs.config()) == []
    assert audits(runs.config("targets=topk", "targets.audit.every=null")) == []
    (audit,) = audits(runs.config("targets=topk", "targets.audit.every=7", "targets.audit.records=3"))
    assert isinstance(audit, Audit)
    assert (audit.every, audit.records) == (7, 3)


def test_a_live_teacher_reports_its_mass():
    parts = build(runs.config(*WORDS))
    teacher = parts.module.models.teacher
    (batch, *_) = parts.encoder.batches(parts.data.train)
    logits = teacher.exact.output(batch, frozenset({"logits"})).logits
    teacher.output(batch, frozenset({"logits"}))
    total, count = teacher.take_report()["teacher_mass"]
    top = logits.rows(slice(0, logits.n)).softmax(-1).topk(4).values.sum(-1)
    assert count == logits.n
    assert total == pytest.approx(top.sum().item(), rel=1e-5)
    assert teacher.take_report() == {"teacher_mass": (0.0, 0.0)}  # a name that one rank lacks would stop the others


def of_everything(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    reference_logits: Float[Tensor, "*n V"],
    student_logprobs: Float[Tensor, "*n"],
    reference_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    progress: Progress,
) -> Float[Tensor, "*n"]:
    """All that `kd.composition.targets` admits in a term on kept logits; (student / behaviour) is 1 in an audit."""
    gap = reference_logprobs - student_logprobs.detach() + progress.fraction
    ratio = (student_logprobs - behaviour_logprobs).exp()
    return forward_kl(student_logits, teacher_logits) + forward_kl(student_logits, reference_logits) + gap * ratio


def test_an_audit_supplies_whatever_is_admitted():
    cfg = runs.config(*WORDS, objective={"all": runs.term(of_everything)})
    check_targets(OmegaConf.to_container(cfg, resolve=True))
    parts = build(cfg)
    module, records = parts.module, parts.data.validation[:2]
    with torch.no_grad():
        for weight in module.models.reference.model.parameters():
            weight.mul_(1.1)
    numbers = audited(module, records)
    n, total = 0, 0.0
    for batch in parts.encoder.batches(records):
        kept, full = module.models.teacher.probe(batch)
        with torch.no_grad():
            student, reference = (
                of(batch.student, frozenset({"logits", "logprobs"})) for of in (module.student, module.models.reference)
            )
        mask = batch.student.mask
        q, own, base = student.logits, student.logprobs[mask], reference.logprobs[mask]
        all_of = {"student_logits": q.rows(slice(0, q.n)), "reference_logits": reference.logits.rows(slice(0, q.n))}
        all_of |= {"student_logprobs": own, "behaviour_logprobs": own, "reference_logprobs": base}
        value, whole = (
            evaluated(of_everything, {**all_of, "teacher_logits": logits, "progress": Progress(0, 10)})[0].mean().item()
            for logits in (kept, full.rows(slice(0, q.n)))
        )
        n, total = n + q.n, total + q.n * (value - whole) / abs(whole)
    assert numbers["all_bias"] == pytest.approx(total / n, rel=1e-3)


def test_an_audit_leaves_each_part_in_its_mode():
    """A student whose trunk is frozen in eval mode stays so."""
    parts = build(runs.config(*WORDS))
    student = parts.module.student.train()
    student.network.model.eval()
    modes = [module.training for module in student.modules()]
    audited(parts.module, parts.data.validation[:2])
    assert [module.training for module in student.modules()] == modes
