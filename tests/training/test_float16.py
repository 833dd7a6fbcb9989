"""In float16 the loss is scaled: small gradients do not vanish, and a step whose gradients overflow is left out.

Lightning offers it on GPUs alone; here its own plugin and scaler compute on the CPU.

Run: python -m pytest tests/training/test_float16.py
"""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from kd.experiment.build import Parts, build
from kd.kernels import over_chunks
from kd.kernels.logits import HeadLogits
from kd.objectives.divergence import forward_kl
from kd.signals import requires
from kd.types import Head
from tests import runs


def gradients(dtype: torch.dtype, weight: float) -> list[torch.Tensor]:
    """Of hidden states and head, for rows that weigh `weight` each; in float16 with a scaled loss, as in a step."""
    draw = torch.Generator().manual_seed(0)
    sizes = ((200, 16), (50, 16), (200, 16), (50, 16))
    hidden, head, taught, teaching = (torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(wide).requires_grad_() for x in (hidden, head)]
    scale = 1.0 if dtype == torch.float64 else 2.0**16
    with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
        total, _ = over_chunks(
            {"fkl": forward_kl},
            HeadLogits(leaves[0], Head(leaves[1])),
            {"teacher_logits": HeadLogits(taught.to(wide), Head(teaching.to(wide)))},
            {"fkl": torch.full((200,), weight)},
            {"fkl": requires(forward_kl)},
        )
    (total * scale).backward()
    return [leaf.grad.double() / scale for leaf in leaves]


@pytest.mark.parametrize("weight", [1.0, 1e-3, 1e-7])
def test_gradients_made_in_the_forward_pass_do_not_vanish(weight):
    for mine, truth in zip(gradients(torch.float16, weight), gradients(torch.float64, weight), strict=True):
        assert (mine - truth).norm() <= 5e-3 * truth.norm()


def trained(folder: Path, precision: MixedPrecision | None, steps: int = 6) -> tuple[Parts, list[dict[str, float]]]:
    """A few steps, and what each of them logs."""
    parts = build(runs.config("log_every=1", f"optim.steps={steps}", "optim.clip=0.01", "objective=fkl"))
    logged = list[dict[str, float]]()

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    trainer = lightning.Trainer(
        accelerator="cpu",
        plugins=[precision] if precision else None,
        max_epochs=1,
        logger=False,
        callbacks=[Watch()],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(parts.module, datamodule=parts.data)
    return parts, logged


def test_steps_are_those_of_float32_within_rounding(tmp_path):
    """The clip bounds gradients that are not scaled any more: their norm is above it in each step."""
    _, exact = trained(tmp_path, None)
    parts, half = trained(tmp_path, MixedPrecision("16-mixed", "cpu"))
    assert all(row["train/grad_norm"] > 0.01 for row in exact)
    for mine, truth in zip(half, exact, strict=True):
        assert mine["train/grad_norm"] == pytest.approx(truth["train/grad_norm"], rel=0.02)
        assert mine["train/loss"] == pytest.approx(truth["train/loss"], rel=0.01)
    assert half[-1]["train/loss_scale"] == 2.0**16
    assert parts.module.finiteness.first(lambda x: x, lambda x: x) is None


def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    parts, logged = trained(tmp_path, MixedPrecision("16-mixed", "cpu", scaler), steps=4)
    assert [row["train/loss_scale"] for row in logged[:3]] == [2.0**39, 2.0**38, 2.0**37]
    fresh = build(runs.config("objective=fkl"))
    for mine, start in zip(parts.module.student.parameters(), fresh.module.student.parameters(), strict=True):
        assert torch.equal(mine, start)
