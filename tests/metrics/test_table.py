"""A metric's unit, range and direction count wherever it is computed, compared or printed; reports look them up.

Run: python -m pytest tests/metrics/test_table.py
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from kd.components.choices import CONF
from kd.composition.overrides import started
from kd.experiment import run as experiment
from kd.experiment.plan import Plan
from kd.experiment.scores import _gap
from kd.intervals import mean, over_seeds
from kd.metrics.table import METRICS, ON_TEACHER, Metric, of_results, of_skill
from kd.reports.sweep import sweep_grids
from kd.reports.table import run_grid
from kd.rewards.verifier import Verifier
from kd.runs.results import validated
from kd.skills.scoring import scored
from kd.sweeps.jobs import Job
from tests import runs
from tests.reports.test_reports import add_run, page

WRONG = Metric("wrong_letters", "letters wrong (%)", unit="percent", low=0.0, high=100.0, higher_is_better=False)
COUNT = Metric("points", high=math.inf)


class Wrong(runs.Toy):
    """The toy skill, scored by the share of letters that are wrong; it fails on a text without any."""

    name, metric = "wrong", WRONG

    def score(self, record: Any, text: str) -> float:
        """In percent of the longer text's letters."""
        right = record.responses[0].text
        same = sum(a == b for a, b in zip(right, text, strict=False))
        return 100 * (1 - same / max(len(right), len(text)))


class Failing(Wrong):
    """The same with a verifier that raises on every text but the reference."""

    def score(self, record: Any, text: str) -> float:
        """Zero for the reference."""
        if text != record.responses[0].text:
            raise RuntimeError("no verdict")
        return 0.0


# ---- one metric ------------------------------------------------------------------------------------------------------


def test_every_run_has_these():
    assert {name: (m.bounds, m.higher_is_better) for name, m in METRICS.items()} == {
        "bits_per_byte": ((0.0, math.inf), False),
        "top1": ((0.0, 1.0), True),
        "forward_kl": ((0.0, math.inf), False),
        "reverse_kl": ((0.0, math.inf), False),
    }
    assert ON_TEACHER == ("top1", "forward_kl", "reverse_kl")
    assert of_skill("accuracy").bounds == (0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "exact match"}, "'exact match': a name has letters, digits, _ and -"),
        ({"name": "x", "low": 1.0}, "metric x: low=1.0 is not below high=1.0; give its range"),
        ({"name": "x", "high": math.nan}, "metric x: low=0.0 is not below high=nan"),
        ({"name": "edits", "high": math.inf, "higher_is_better": False}, "high=inf is its worst value, .* finite high"),
        ({"name": "gain", "low": -math.inf}, "low=-inf is its worst value, .* finite low"),
    ],
)
def test_a_metric_that_is_none_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Metric(**settings)


@pytest.mark.parametrize("declared", ["forward_kl", Metric("fit", of="references")])
def test_a_skill_declares_none_that_every_run_has(declared):
    with pytest.raises(ValueError, match="of a skill: it is of answers, with a name beside bits_per_byte, top1"):
        of_skill(declared)


def test_a_score_has_the_range_of_its_metric_and_the_worst_without_a_verdict():
    record = runs.Toy().load("test")[0]
    right = record.responses[0].text

    def found(skill: Any, text: str) -> Any:
        return scored(skill, record, text, reference=lambda: right)

    assert found(Wrong(), right).score == 0.0
    assert found(Wrong(), "\0" * len(right)).score == 100.0
    assert found(Failing(), "other") == (100.0, "raised: RuntimeError: no verdict")
    outside = Wrong()
    outside.score = lambda record, text: 101.0
    with pytest.raises(ValueError, match=r"gives 101\.0; a score lies between 0 and 100"):
        found(outside, right)


def test_a_reward_is_the_way_from_the_worst_to_the_best():
    skill = Wrong()
    assert [Verifier(skill).metric.share(score) for score in (100.0, 25.0, 0.0)] == [0.0, 0.75, 1.0]
    assert Verifier(runs.Toy()).metric.share(0.3) == 0.3
    skill.metric = COUNT
    with pytest.raises(ValueError, match="the metric points of skill wrong has no best value"):
        Verifier(skill)


def test_intervals_have_the_scale_of_the_metric():
    """Those of shares, on another scale; of scores that are all alike, Wilson's: the upper end is 100 / (1 + 8/z²)."""
    scores, groups = [0.0, 0.25, 0.5, 1.0, 0.5, 0.75], ["a", "a", "b", "b", "c", "c"]
    share, scaled = mean(scores, groups), mean([20 + 80 * x for x in scores], groups, bounds=(20.0, 100.0))
    assert scaled.n == share.n == 6
    wanted = [20 + 80 * x for x in (share.value, share.low, share.high)]
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(wanted)
    assert mean([0.0] * 8, bounds=(0.0, 100.0)).high == pytest.approx(100 / (1 + 8 / 1.959964**2), rel=1e-5)
    counts = mean([0.0, 1.0, 1.0, 1.0], bounds=(0.0, math.inf))  # of points, which are no proportion
    assert counts.high > 0.75 > counts.low
    assert counts != mean([0.0, 1.0, 1.0, 1.0])
    values, of = [0.2, 0.9, 1.0], [32, 32, 32]
    low, high = over_seeds(values, of, (0.0, 1.0))[1:]
    assert over_seeds([100 * x for x in values], of, (0.0, 100.0)) == pytest.approx((70.0, 100 * low, 100 * high))


def test_the_gap_of_what_should_be_low():
    systems = {name: {"value": value} for name, value in {"before": 80.0, "teacher": 20.0, "after": 35.0}.items()}
    assert _gap(systems, WRONG) == pytest.approx(0.75)
    assert _gap(systems, replace(WRONG, higher_is_better=True)) is None  # the teacher would be no better


# ---- what reports read -----------------------------------------------------------------------------------------------


def foreign(metric: Metric, after: float = 99.0, **changes: Any) -> dict[str, Any]:
    """Results of a skill with its own metric, whose facts they carry."""
    results = page(**changes)
    scores = results["scores"]["sums"]
    estimate = {"value": after, "n": 32, "low": None, "high": None}
    scores[metric.name] = {**scores.pop("accuracy"), "before": {**estimate, "value": 100.0}, "after": estimate}
    facts = {name: METRICS[name].facts() for name in ("bits_per_byte", *ON_TEACHER)}
    return {**results, "metrics": {**facts, metric.name: metric.facts()}}


def test_a_report_reads_the_facts_of_a_foreign_metric(tmp_path):
    results = foreign(WRONG)
    assert of_results(results, "wrong_letters") == WRONG
    grid = run_grid(results)
    assert grid.header[-1] == "letters wrong (%)"
    assert grid.notes[1].startswith(
        "sums: wrong_letters is near its worst value, 100, for every student (the teacher is"
    )
    assert len(run_grid(foreign(WRONG, after=0.0)).notes) == 1  # near zero, which is the best
    assert len(run_grid(foreign(COUNT, after=0.0)).notes) == 1  # of what has no best, nothing is near


def test_means_over_seeds_stay_within_the_range_of_a_foreign_metric(tmp_path):
    for seed, after in enumerate((20.0, 90.0, 100.0), 1):
        folder = add_run(tmp_path, seed, ["skill=own", f"seed={seed}"], seed=seed)
        folder.finish(foreign(WRONG, after=after, seed=seed))
    _, means = sweep_grids(tmp_path)
    # those of shares (tests/reports/test_reports.py), in percent; a t interval would end at 178
    assert means.rows[0][means.header.index("letters wrong (%)")] == "70.0 [7.55, 98.5]"


def test_results_from_before_hold_shares():
    assert of_results(page(), "accuracy") == Metric("accuracy")
    assert of_results(page(), "forward_kl") == METRICS["forward_kl"]


def test_results_without_the_facts_of_a_metric_are_refused():
    results = {**foreign(WRONG), "config_hash": "0" * 12}
    validated(results)
    del results["metrics"]["wrong_letters"]
    with pytest.raises(ValueError, match="metrics has no facts of wrong_letters"):
        validated(results)
    with pytest.raises(ValueError, match="agreement has forward_kl, top1 instead of top1, forward_kl, reverse_kl"):
        validated({**results, "metrics": {}, "agreement": {k: page()["agreement"][k] for k in ("top1", "forward_kl")}})


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_on_a_foreign_metric(tmp_path: Path):
    """What the skill declares is in results.json, with the way from before to the teacher in its direction."""
    words = ("optim.steps=2", "checkpoint.validate=2", "compare=null", "evaluation=quick", f"run.root={tmp_path}")
    cfg = runs.config(*words, skill={"_target_": f"{__name__}.Wrong"})
    GlobalHydra.instance().clear()
    with started(CONF):
        experiment.run(cfg, Job([]))
        results = Plan.of(cfg).folder.results()
    assert results["metrics"]["wrong_letters"] == {
        **{"heading": "letters wrong (%)", "unit": "percent", "low": 0.0, "high": 100.0},
        **{"higher_is_better": False, "of": "answers"},
    }
    assert results["metrics"]["bits_per_byte"]["high"] is None
    systems = results["scores"]["wrong"]["wrong_letters"]
    values = {name: system["value"] for name, system in systems.items() if system}
    assert values["after"] > 1.0, "in percent"
    gap = results["gap_closed"]["wrong"]["wrong_letters"]
    better = values["before"] > values["teacher"]
    expected = (values["before"] - values["after"]) / (values["before"] - values["teacher"]) if better else None
    assert gap == (expected if expected is None else pytest.approx(expected))
