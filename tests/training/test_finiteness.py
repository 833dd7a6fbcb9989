"""A run whose loss, gradient or weights are not finite stops, names the cause, and keeps the last good checkpoint.

Run: python -m pytest tests/training/test_finiteness.py
"""

import math
import os
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor, nn

from kd.composition.check import check
from kd.training.finiteness import Finiteness, NotFinite
from kd.types import Progress
from tests import runs

NAN, INF = math.nan, math.inf
EVERY_STEP = ["checkpoint.every=1", "checkpoint.validate=10", "log_every=9"]


def plain(student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log q."""
    return -student_logprobs


def root(student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log q + sqrt(0): finite, with a gradient of 0 x inf."""
    return -student_logprobs + (student_logprobs - student_logprobs).sqrt()


class FromStep(nn.Module):
    """-log q, and infinite from the fifth step on, with `rank` on that rank alone."""

    def __init__(self, rank: int | None = None) -> None:
        super().__init__()
        self.done, self.here = 0, rank in (None, int(os.environ.get("LOCAL_RANK", 0)))

    def forward(self, student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return -student_logprobs / float(self.done < 4 or not self.here)

    def after_step(self, value: float, progress: Progress) -> None:
        self.done = progress.step


BROKEN = {"fine": runs.term(plain), "broken": runs.term(FromStep)}


def stopped(path: Path, *overrides: str, **nodes) -> str:
    """The sentence of a run that stops."""
    with pytest.raises(NotFinite) as raised:
        runs.train(runs.config(*overrides, **nodes), path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def saved(path: Path) -> dict:
    return torch.load(path / "checkpoints/last.ckpt", weights_only=True)


# ---- what is recorded on the device ----------------------------------------------------------------------------------


def noted(*steps: dict[str, float], weights: float = 1.0) -> tuple[int, str, float] | None:
    """The first of steps 1, 2, ... that is not finite; `weights` are those after the last one."""
    finiteness = Finiteness(["a", "b"])
    for i, values in enumerate(steps, start=1):
        norm = weights if i == len(steps) else 1.0
        finiteness.note(i, {n: torch.tensor(v) for n, v in values.items()}, [nn.Parameter(torch.tensor([norm]))])
    return finiteness.first(lambda step: step, lambda values: values)


def test_the_first_step_and_the_cause_are_kept():
    fine = {"a": 1.0, "b": -2.0, "loss": 3.0, "grad_norm": 0.0}
    assert noted() is None
    assert noted(fine, fine) is None
    assert noted(fine, {**fine, "b": -INF, "loss": INF}, {**fine, "a": INF}) == (2, "b", -INF)
    assert noted(fine, {**fine, "loss": INF, "grad_norm": INF}) == (2, "loss", INF)
    assert noted(fine, {"a": 1.0, "loss": 1.0, "grad_norm": INF}) == (2, "grad_norm", INF), "b is silent in this step"
    assert noted(fine, fine, fine, weights=-INF) == (3, "weights", INF)


def test_no_step_waits_for_the_device():
    """On the device "meta" nothing has a value, so whatever reads one raises."""
    finiteness = Finiteness(["a"])
    for step in (1, 2):
        values = {name: torch.zeros((), device="meta") for name in finiteness.names}
        finiteness.note(step, values, [nn.Parameter(torch.zeros(3, device="meta"))])
    with pytest.raises((RuntimeError, NotImplementedError)):
        finiteness.first(lambda step: step, lambda values: values)


# ---- a run stops -----------------------------------------------------------------------------------------------------


def test_step_term_remedy_and_checkpoint_are_named_and_the_checkpoint_is_a_good_one(tmp_path):
    refusal = stopped(tmp_path, *EVERY_STEP, objective=BROKEN)
    assert "the term broken is inf at step 5" in refusal
    assert "lower optim.lr=0.01" in refusal
    assert "optim.clip" not in refusal, "it is set already"
    assert f"{tmp_path}/checkpoints/last.ckpt is kept as it was after step 4" in refusal
    assert saved(tmp_path)["distillation"]["step"] == 4
    assert all(bool(value.isfinite().all()) for value in saved(tmp_path)["state_dict"].values())


def test_the_log_interval_is_soon_enough(tmp_path):
    refusal = stopped(tmp_path, "log_every=3", "checkpoint.every=10", "checkpoint.validate=10", objective=BROKEN)
    assert "step 5" in refusal
    assert {int(row.split(",")[0]) for row in runs.metrics(tmp_path)} == {3}


def test_neither_validation_nor_the_best_checkpoint_sees_a_broken_student(tmp_path):
    refusal = stopped(tmp_path, "log_every=10", "checkpoint.every=10", "checkpoint.validate=6", objective=BROKEN)
    assert "step 5" in refusal
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_gradient_alone_stops_the_run_before_the_learning_rate_is_blamed(tmp_path):
    refusal = stopped(tmp_path, "trainer.precision=bf16-mixed", objective={"root": runs.term(root)})
    assert "the gradient norm is nan at step 1" in refusal
    assert "optim.lr" not in refusal
    assert "trainer.precision=32-true" in refusal


def test_remedies_are_those_that_are_left(tmp_path):
    objective = {"broken": runs.term(FromStep, 3.0)}
    refusal = stopped(tmp_path, "optim.clip=null", "optim.warmup=0.0", objective=objective)
    assert "set optim.clip=1.0" in refusal
    assert "set optim.warmup=0.1" in refusal
    assert "lower objective.broken.weight=3" in refusal


@pytest.mark.long
def test_all_ranks_stop_when_one_is_broken(tmp_path):
    objective = {"fine": runs.term(plain), "broken": runs.term(FromStep)}
    objective["broken"]["loss"]["rank"] = 1
    process = runs.in_processes(runs.job(tmp_path, "trainer=ddp_cpu", *EVERY_STEP, objective=objective))
    assert process.returncode == 1, process.stderr
    assert process.stderr.count("the term broken is inf at step 5") == 1, "the first rank alone raises it"
    assert saved(tmp_path)["distillation"]["step"] == 4


# ---- settings that diverge -------------------------------------------------------------------------------------------

AB = "objective=ab"
DIVERGE = [
    ["optim.lr=1e300"],
    ["optim.lr=1e30"],
    ["optim.lr=inf"],
    ["optim.lr=nan"],
    ["optim.weight_decay=inf"],
    ["optim.weight_decay=1e30"],
    ["optim.weight_decay=nan"],
    ["optim.beta1=1.0"],
    ["optim.beta2=1.0"],
    ["optim.beta1=nan"],
    ["optim.clip=nan"],
    ["optim.clip=inf"],
    ["optim.clip=1e-300"],
    ["temperature=1e-300"],
    ["temperature=1e300"],
    ["temperature=nan"],
    ["objective.fkl.weight=1e300"],
    ["objective.fkl.weight=1e30", "optim.clip=null"],
    ["objective.fkl.weight=nan"],
    ["objective.fkl.weight={start:nan,end:1}"],
    ["objective.fkl.weight={start:1,end:1e300,shape:exponential}"],
    ["objective.fkl.loss.temperature=1e-30"],
    [AB, "objective.ab.loss.alpha=nan"],
    [AB, "objective.ab.loss.alpha=1e300"],
    [AB, "objective.ab.loss.beta=inf"],
    ["objective=sft", "+objective.sft.lr=1e300"],
    ["objective=taid", "objective.taid.loss.t_start=nan"],
    ["objective=hidden_mse", "objective.hidden_mse.weight=1e38"],
    ["rollout=on_policy", "rollout.temperature=nan"],
    ["rollout=on_policy", "rollout.temperature=1e-300"],
    ["student.model.architecture.initializer_range=1e300"],
    ["+student.model.architecture.rms_norm_eps=nan"],
]


def end(cfg: DictConfig, path: Path) -> None:
    """A command: checked, then run."""
    check(cfg)
    runs.train(cfg, path)


@pytest.mark.parametrize("overrides", DIVERGE, ids=" ".join)
def test_no_setting_that_diverges_reaches_the_end(tmp_path, overrides):
    """It is refused in one sentence before anything is loaded, or its run stops in one."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as raised:
        end(runs.config(*overrides), tmp_path)
    assert not list(tmp_path.glob("checkpoints/*")), raised.value


PAST_THE_CHECKS = {
    "optim.lr=1e300": "optim.lr=1e+300",
    "optim.weight_decay=inf": "lower optim.weight_decay=inf",
    "temperature=1e-300": "raise objective.fkl.loss.temperature=1e-300",
    "objective.fkl.weight=1e300": "lower objective.fkl.weight=1e+300",
    "objective.fkl.weight={start:0.1,end:1e300}": "lower objective.fkl.weight=0.1 → 1e+300",
}


@pytest.mark.parametrize("override", PAST_THE_CHECKS)
def test_the_guard_needs_no_check_before_it(tmp_path, override):
    """Bounds are drawn by hand: what none of them foresees diverges in the run, and stops there."""
    refusal = stopped(tmp_path, override, *EVERY_STEP)
    assert PAST_THE_CHECKS[override] in refusal
