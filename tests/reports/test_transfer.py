"""Trained on one skill, evaluated on another: the table of a sweep over skills with `evaluation.skills`."""

from typing import Any

from kd.reports.runs import Job
from kd.reports.sweep import grids_of
from kd.reports.transfer import transfer_grid


def run(own: str, **scores: tuple[float, float]) -> Job:
    """A finished run on `own`; the accuracy before and after of each skill, its own first."""
    pairs = {own: scores[own], **scores}
    found: dict[str, Any] = {
        skill: {
            "bits_per_byte": {"before": {"value": 9.0, "n": 4}, "after": {"value": 1.0, "n": 4}},
            "accuracy": {"before": {"value": before, "n": 4}, "after": {"value": after, "n": 4}},
        }
        for skill, (before, after) in pairs.items()
    }
    costs = ("student_flops", "tokens", "teacher_tokens", "generated_tokens", "seconds", "peak_memory_bytes")
    digests = {"initial_weights": "a", "data_order": "b", "evaluation_items": "c"}
    results = {"seed": 1, "scores": found, "gap_closed": {}, "agreement": None, "digests": digests}
    return Job("0", "done", {"skill": own}, results={**results, "budget": dict.fromkeys(costs, 1)})


def test_a_cell_is_the_mean_over_seeds_and_the_change() -> None:
    jobs = [
        run("sums", sums=(0.0, 0.5), words=(0.25, 0.125)),
        run("sums", sums=(0.0, 0.25), words=(0.25, 0.0)),
        run("words", words=(0.25, 1.0), sums=(0.0, 0.0)),
    ]
    grid = transfer_grid(jobs)
    assert grid is not None
    assert list(grid.header) == ["trained on", "sums\naccuracy", "words\naccuracy"]
    # sums: (0.5 + 0.25) / 2, both from 0; words: (0.125 + 0) / 2 and -(0.125 + 0.25) / 2
    assert [list(row) for row in grid.rows] == [
        ["sums", "0.375 (+0.375)", "0.0625 (−0.188)"],
        ["words", "0.00 (+0.00)", "1.00 (+0.750)"],
    ]


def test_a_skill_that_one_run_alone_was_evaluated_on_is_left_out() -> None:
    grid = transfer_grid([run("sums", sums=(0.0, 0.5), words=(0.0, 0.0)), run("words", words=(0.0, 1.0))])
    assert grid is not None
    assert list(grid.header) == ["trained on", "words\naccuracy"]
    assert [list(row) for row in grid.rows] == [["sums", "0.00 (+0.00)"], ["words", "1.00 (+1.00)"]]


def test_without_runs_on_several_skills_there_is_none() -> None:
    assert transfer_grid([run("sums", sums=(0.0, 0.5), words=(0.0, 0.0))]) is None
    assert transfer_grid([run("sums", sums=(0.0, 0.5)), run("words", words=(0.0, 1.0))]) is None
    assert transfer_grid([]) is None


def test_a_sweep_ends_with_it() -> None:
    jobs = [run("sums", sums=(0.0, 0.5), words=(0.0, 0.0)), run("words", words=(0.0, 1.0), sums=(0.0, 0.0))]
    assert "Transfer and forgetting" in [grid.title for grid in grids_of(jobs)]
