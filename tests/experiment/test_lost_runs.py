"""A cause that would lose a run at its end is an error before its first step, and a run that could not learn fails.

Run: python -m pytest tests/experiment/test_lost_runs.py
"""

import shutil
from dataclasses import replace

import pytest

from kd.experiment.build import build
from kd.experiment.scores import Evaluated
from kd.rollouts.offline import Offline
from kd.runs.results import Budget
from kd.types import Batch, Models, Progress, Record, Split
from tests import runs

BEST = "checkpoint.use=best"


class Unvalidated(runs.Toy):
    """No validation record."""

    def load(self, split: Split) -> list[Record]:
        return [] if split == "validation" else super().load(split)


class Masked(Offline):
    """The records' own responses, of which only every `keep`-th has a token that counts; 0: none."""

    def __init__(self, keep: int):
        self.keep = keep

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder) -> list[Batch]:
        return [self._masked(batch) for batch in super().__call__(window, models, progress, encoder)]

    def _masked(self, batch: Batch) -> Batch:
        mask = batch.student.mask.clone()
        for row in range(len(mask)):
            mask[row] &= bool(self.keep) and row % self.keep == 0
        student = replace(batch.student, mask=mask)
        return replace(batch, student=student, teacher=student)


def node(target: type, **settings) -> dict:
    return {"_target_": f"{target.__module__}.{target.__qualname__}", **settings}


def test_best_needs_a_validation_record():
    with pytest.raises(ValueError, match=r"checkpoint\.use=best .*there are none; .*checkpoint\.use=last"):
        build(runs.config(BEST, skill=node(Unvalidated)))
    build(runs.config("checkpoint.use=last", skill=node(Unvalidated)))


def test_a_run_that_a_budget_ends_early_has_a_best(tmp_path):
    parts = runs.train(runs.config(BEST, "budget.tokens=1", "checkpoint.validate=10"), tmp_path)
    assert parts.module.step_count == 1
    assert (tmp_path / "checkpoints/best.ckpt").exists()


@pytest.mark.parametrize("damage", [lambda best: best.unlink(), lambda best: best.write_bytes(b"torn")])
def test_a_run_that_goes_on_misses_its_best_before_it_trains_and_the_remedy_works(tmp_path, damage):
    """At a learning rate that ruins the student, the first validation is the best, and no later one writes it."""
    ruins = ("optim.lr=3.0", "optim.schedule=constant", "checkpoint.validate=1", "optim.warmup=1.0")
    with pytest.raises(SystemExit):
        runs.train(runs.config(BEST, *ruins, rollout=runs.scripted(tmp_path, (6, 0, "SIGTERM"))), tmp_path)
    damage(tmp_path / "checkpoints/best.ckpt")
    rows = (tmp_path / "metrics.csv").read_text()
    with pytest.raises(
        ValueError, match=r"best\.ckpt .*delete the folder \S+/checkpoints to begin at step 0"
    ) as raised:
        runs.train(runs.config(BEST, *ruins), tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == rows
    shutil.rmtree(str(raised.value).partition("delete the folder ")[2].partition(" to begin")[0])
    assert runs.train(runs.config(BEST, *ruins), tmp_path).module.step_count == 10


def test_a_run_in_which_no_token_counts_fails(tmp_path):
    with pytest.raises(ValueError, match=r"nothing was learnt: none of the 50 responses .* positions are masked"):
        runs.train(runs.config(rollout=node(Masked, keep=0)), tmp_path)


def test_responses_without_a_token_that_counts_are_counted(tmp_path, capsys):
    budget = runs.train(runs.config(rollout=node(Masked, keep=2)), tmp_path).module.budget
    assert budget.responses == 50
    assert 15 < budget.masked < 30
    line = f"{budget.masked} of 50 responses had no token that counts"
    assert line in capsys.readouterr().out


def test_what_a_run_costs_fits_its_results(tmp_path):
    """Counters of a run alone stay out of results.json, whose schema refuses them."""
    parts = runs.train(runs.config("optim.steps=1"), tmp_path)
    evaluated = Evaluated.__new__(Evaluated)
    evaluated.parts = parts
    assert Budget(**evaluated._budget()).tokens == parts.module.budget.tokens
