"""Half a method, unfiltered text of its own, a gradient that fades: printed when a run begins, and under its table.

Run: python -m pytest tests/composition/test_cautions.py
"""

from collections.abc import Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir

from kd.components.choices import CONF, choices
from kd.composition.cautions import cautions
from kd.composition.check import resolved
from kd.objectives.alpha_beta import alpha_beta
from kd.objectives.divergence import forward_kl, total_variation
from kd.reports.table import run_grid


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def cautioned(line: str) -> list[str]:
    return cautions(resolved(compose("config", overrides=line.split())))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("objective=distillm2", "half of distillm2 is trained"),
        ("objective=fdistill_js rollout=on_policy", "rollout OnPolicy has the student's own responses alone"),
        ("objective=distillm2_adaptive rollout=teacher", "has responses that the student did not generate alone"),
        ("objective=distillm2 rollout=mixed rollout.share=1.0", "half of distillm2"),
        ("objective=distillm2 rollout=paired +objective.distillm2.responses=student", "half of distillm2"),
        (
            "objective=fkl +objective.fkl.responses=student",
            "fkl learns on responses: student, of which rollout Offline has none",
        ),
        ("objective=sft rollout=on_policy", "sft raises the likelihood of the student's own responses, right or wrong"),
        ("objective=uld alignment=none rollout=replay", "sft raises the likelihood"),
        ("objective=sft rollout=mixed", "objective.sft.responses=other leaves them out"),
        ("objective=ab", "ab has almost no gradient where the student is far"),
        ("objective=tvd teacher=tiny student=tiny", "tvd has almost no gradient"),
        ("objective=fdistill_tvd student=scratch", "fdistill_tvd has almost no gradient"),
    ],
)
def test_it_is_cautioned_against(line: str, part: str) -> None:
    (sentence,) = cautioned(line)
    assert part in sentence


@pytest.mark.parametrize(
    "line",
    [
        "objective=distillm2 rollout=paired",
        "objective=fdistill_js rollout=mixed",
        "objective=distillm2 rollout=adaptive",
        "objective=distillm2 rollout=replay rollout.writer._target_=kd.rollouts.paired.Paired",
        "objective=sft rollout=mixed +objective.sft.responses=other",
        "objective=sft rollout=teacher",
        "objective=sft rollout=speculative",  # the teacher replaces what it would not generate
        "objective=pro rollout=on_policy rollout.samples=4 reward=verifier",
        "objective=orpo rollout=paired",
        "objective=soft_ce rollout=on_policy",
        "objective=ab objective.ab.loss.alpha=1.0 objective.ab.loss.beta=0.0",
        "objective=tvd student=lora",
        "objective=tvd student.prepare={objective:sft,skill:null,steps:1}",
    ],
)
def test_no_caution_is_given(line: str) -> None:
    assert cautioned(line) == []


ALONE = ("babyllama", "dn_mopd", "mopd", "sdft", "sdpo", "trd_self")  # their teacher is no source of a student


@pytest.mark.parametrize(
    "method", [m for m in choices("method") if m not in ("abkd", "opsd")]
)  # little gradient so far
def test_methods_are_whole(method: str) -> None:
    assert cautioned(f"method={method}" + (" student=tiny skill=spell_backward" if method in ALONE else "")) == []


def test_it_stands_under_the_table() -> None:
    page = {"scores": {}, "gap_closed": {}, "agreement": None, "cautions": ["half of it is trained"]}
    assert run_grid(page).notes[-1] == "Caution: half of it is trained."


@pytest.mark.parametrize("loss", [total_variation, alpha_beta])
def test_the_gradient_fades_where_the_caution_is_reported(loss) -> None:
    """Of the id that the teacher is sure of: for forward KL its gradient is q - p, here -1, whatever q is."""
    teacher = torch.tensor([[20.0, 0.0, 0.0, 0.0]], dtype=torch.float64)

    def pull(divergence, distance: float) -> float:
        student = torch.tensor([[-distance, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(divergence(student, teacher).sum(), student)
        return -float(gradient[0, 0])

    assert pull(forward_kl, 20.0) == pytest.approx(1.0, abs=1e-6)
    assert pull(loss, 20.0) < 1e-5
    assert pull(loss, 20.0) < pull(loss, 10.0) / 500
