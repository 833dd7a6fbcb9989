import csv
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from kd.runs.metrics_log import TidyLogger


def rows(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_rows_are_tidy_and_readable_at_once(tmp_path: Path) -> None:
    log = TidyLogger(tmp_path)
    log.log_metrics({"train/loss": 0.1 + 0.2, "lr": 1e-3, "epoch": 0}, step=1)
    log.log_metrics({"validation/toy/accuracy": torch.tensor(0.5)}, step=2)
    assert rows(tmp_path) == [
        ["step", "split", "name", "value"],
        ["1", "train", "loss", "0.30000000000000004"],  # every digit: resumed runs are compared bit for bit
        ["1", "", "lr", "0.001"],
        ["2", "validation", "toy/accuracy", "0.5"],
    ]


def test_a_step_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step"):
        TidyLogger(tmp_path).log_metrics({"train/loss": 1.0})


@pytest.mark.parametrize("half_row", ["", "3,train,loss,0.", "3", "2,train,lr,0.", "1"])
def test_a_resumed_run_writes_later_steps_again(half_row: str, tmp_path: Path) -> None:
    log = TidyLogger(tmp_path)
    log.truncate_after(5)  # nothing there yet
    for step in (1, 2, 3):
        log.log_metrics({"train/loss": step}, step=step)
    uninterrupted = rows(tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(half_row)  # the process died here
    TidyLogger(tmp_path).truncate_after(2)
    assert [row[0] for row in rows(tmp_path)] == ["step", "1", "2"]
    TidyLogger(tmp_path).log_metrics({"train/loss": 3}, step=3)
    assert rows(tmp_path) == uninterrupted


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    TidyLogger(tmp_path).log_metrics({"train/loss": 1.0}, step=1)
    assert not (tmp_path / "metrics.csv").exists()


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.1})
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = (self.weight - 1).square().sum()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_under_a_trainer(tmp_path: Path) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", log_every_n_steps=1, logger=TidyLogger(tmp_path), **quiet
    )
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.zeros(4, 1)))
    # (0 - 1)^2 = 1; one step of 0.5 x gradient -2 arrives at 1, where the loss is 0
    assert rows(tmp_path)[1:] == [["0", "train", "loss", "1.0"], ["1", "train", "loss", "0.0"]]
