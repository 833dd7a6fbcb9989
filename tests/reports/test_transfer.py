"""Trained on one skill, evaluated on another: the table of a sweep over skills with `evaluation.skills`."""

from dataclasses import replace
from typing import Any

from kd.reports.runs import Job
from kd.reports.sweep import grids_of
from kd.reports.transfer import transfer_grid


def run(own: str, *words: str, **scores: tuple[float | None, float | None]) -> Job:
    """A finished run on `own`; the accuracy before and after of each skill, its own first. words: other overrides."""
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
    overrides = {"skill": own, **dict(word.split("=") for word in words)}
    return Job("0", "done", overrides, results={**results, "budget": dict.fromkeys(costs, 1)})


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


def test_runs_of_several_objectives_are_not_averaged() -> None:
    jobs = [
        run(own, f"objective={objective}", **{own: (0.0, score), other: (0.0, 0.0)})
        for own, other in (("sums", "words"), ("words", "sums"))
        for objective, score in (("fkl", 0.5), ("rkl", 1.0))
    ]
    grid = transfer_grid(jobs)
    assert grid is not None
    assert list(grid.header[:2]) == ["trained on", "objective"]
    assert [list(row[:3]) for row in grid.rows] == [
        ["sums", "fkl", "0.500 (+0.500)"],
        ["sums", "rkl", "1.00 (+1.00)"],
        ["words", "fkl", "0.00 (+0.00)"],
        ["words", "rkl", "0.00 (+0.00)"],
    ]


def test_a_run_without_a_value_is_left_out() -> None:
    """A coefficient that is not defined for the answers is null in results.json."""
    jobs = [
        run("sums", sums=(None, 0.5), words=(0.0, None)),
        run("sums", sums=(0.0, 0.25), words=(0.25, 0.0)),
        run("words", words=(0.0, 1.0), sums=(0.0, 0.0)),
    ]
    grid = transfer_grid(jobs)
    assert grid is not None
    assert list(grid.rows[0]) == ["sums", "0.250 (+0.250)", "0.00 (−0.250)"]


def test_without_runs_on_several_skills_there_is_none() -> None:
    assert transfer_grid([run("sums", sums=(0.0, 0.5), words=(0.0, 0.0))]) is None
    assert transfer_grid([run("sums", sums=(0.0, 0.5)), run("words", words=(0.0, 1.0))]) is None
    assert transfer_grid([]) is None


def test_rows_without_a_value_in_any_column_are_left_out() -> None:
    jobs = [
        run("sums", sums=(0.0, 0.5), words=(0.0, 0.0)),
        run("words", words=(0.0, 1.0)),
        run("sorting", sorting=(0.0, 1.0)),
    ]
    grid = transfer_grid(jobs)
    assert grid is not None
    assert [row[0] for row in grid.rows] == ["sums", "words"]


def test_parts_of_a_mixture_are_no_other_skills() -> None:
    """The mixture was trained on them; no run was evaluated elsewhere."""
    config = {"evaluation": {"skills": []}}
    both = [run("both", both=(0.0, 0.5), sums=(0.0, 0.5)), run("sums", sums=(0.0, 1.0))]
    assert transfer_grid([replace(job, config=config) for job in both]) is None
    elsewhere = replace(both[0], config={"evaluation": {"skills": ["sums"]}})
    assert transfer_grid([elsewhere, both[1]]) is not None


def test_a_sweep_ends_with_it() -> None:
    jobs = [run("sums", sums=(0.0, 0.5), words=(0.0, 0.0)), run("words", words=(0.0, 1.0), sums=(0.0, 0.0))]
    assert "Transfer and forgetting" in [grid.title for grid in grids_of(jobs)]
