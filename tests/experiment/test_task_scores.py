"""The task's scores at validations: a learning curve, by which the best weights are chosen and a run may end.

Run: python -m pytest tests/experiment/test_task_scores.py
"""

import csv
from pathlib import Path

import pytest
import torch

from kd.composition.check import check
from kd.experiment.monitor import direction, monitored, objective
from kd.metrics.table import Metric
from kd.runs.folder import RunFolder
from kd.skills.answer_metrics import answer_metrics
from kd.types import Record
from tests.runs import Toy, config, train

WORDS = ("checkpoint.monitor=toy/{}", "checkpoint.answers=4", "checkpoint.validate=1", "optim.steps=5")


class Lengths(Toy):
    """Toy, scored by the number of letters in an answer, of which more or fewer are better."""

    name = "toy"

    def __init__(self, higher: bool):
        super().__init__()
        self.metric = Metric("letters", unit="letters", low=0, high=1000, higher_is_better=higher)
        self.metrics = answer_metrics(["exact_match", "pass_at_10"])

    def score(self, record: Record, text: str) -> float:
        return float(len(text))


def node(higher: bool) -> dict:
    return {"_target_": f"{__name__}.Lengths", "higher": higher}


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("KD_ALLOW", f"tests,{__name__}")


def lengths(higher: bool, *words: str, metric: str = "letters"):
    words = (*(word.format(metric) for word in WORDS), "evaluation.max_new_tokens=12", *words)
    return config(*words, skill=node(higher))


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if (row["split"], row["name"]) == ("toy", name)]


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_weights_are_those_of_the_best_score(tmp_path, higher):
    folder = tmp_path / "run-0123456789ab"
    cfg = lengths(higher, "checkpoint.use=best")
    parts = train(cfg, folder)
    values = curve(folder, "letters")
    assert len(values) == 5
    assert len(set(values)) > 1
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=False)
    best = max(values) if higher else min(values)
    assert kept["global_step"] == 1 + values.index(best)
    assert objective(cfg, RunFolder(folder)) == best
    assert direction(cfg) == ("maximize" if higher else "minimize")
    del parts


def test_a_validation_before_the_first_step_is_no_result(tmp_path):
    """No checkpoint holds the weights that it measured."""
    folder = tmp_path / "run-0123456789ab"
    folder.mkdir()
    rows = ["step,split,name,value", "0,toy,letters,0.9", "2,toy,letters,0.4", "4,toy,letters,0.6", "6,toy,letters,0.5"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = [objective(lengths(True, f"checkpoint.use={use}"), RunFolder(folder)) for use in ("best", "last")]
    assert found == [0.6, 0.5]


def test_another_metric_of_the_skill(tmp_path):
    folder = tmp_path / "run-0123456789ab"
    cfg = lengths(True, metric="exact_match")
    train(cfg, folder)
    assert len(curve(folder, "exact_match")) == len(curve(folder, "letters")) == 5
    assert monitored(cfg).name == "exact_match"


def test_patience_ends_a_run(tmp_path, capsys):
    folder = tmp_path / "run-0123456789ab"
    train(lengths(True, "optim.lr=1e-30", "checkpoint.patience=2"), folder)
    assert len(curve(folder, "letters")) == 3  # the first, and two that are no better
    assert "ended the run at step 3 of 5" in capsys.readouterr().out


def test_a_curve_changes_no_weight(tmp_path):
    plain, scored = (
        train(
            config("optim.steps=3", "checkpoint.validate=1", answers, skill=node(True)),
            tmp_path / f"{name}-0123456789ab",
        )
        for name, answers in (("a", "checkpoint.answers=0"), ("b", "checkpoint.answers=4"))
    )
    pairs = zip(plain.module.student.parameters(), scored.module.student.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["checkpoint.monitor=toy/letters"], r"checkpoint\.answers=32"),
        (["checkpoint.monitor=validation/loss"], r"validation/bits_per_byte"),
        (["checkpoint.monitor=loss"], r"<skill>/<metric>"),
    ],
)
def test_what_is_not_measured_cannot_be_monitored(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(config(*words, skill=node(True)))


def test_a_metric_that_the_skill_has_not():
    with pytest.raises(ValueError, match=r"no metric of the run's skill; .*toy/letters"):
        monitored(lengths(True, metric="lettres"))
