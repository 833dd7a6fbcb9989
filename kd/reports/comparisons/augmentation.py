"""What augmentation made of the training records, and what it cost."""

import math
from typing import Any

from kd.reports.comparisons.costs import OF_TEACHER, TEACHER_FLOPS, cost_cell, mean_cost, teacher_flops
from kd.reports.comparisons.pivot import mean_of
from kd.reports.frame import Arm, Frame, seeds_text
from kd.reports.grid import Cell, Grid

COUNTS = {"given": "training\nrecords", "left_out": "left out", "truncated": "truncated"}
ELICITED = {  # of the results' `elicitation`, and the teacher's FLOPs
    "responses": "elicited\nresponses",
    "teacher_tokens": "by the teacher:\ntokens",
    TEACHER_FLOPS: "by the teacher:\nFLOPs",
    "generated_tokens": "by the student:\ntokens",
    "student_flops": "by the student:\nFLOPs",
    "judge_flops": "judge\nFLOPs",
    "seconds": "elicitation\nseconds",
}
SPENT = {"teacher_tokens": "all teacher\ntokens", "generated_tokens": "all generated\ntokens"}
CHARGED = (
    "Elicited text is charged to every run that learns on it; all: of elicitation and training together. Seconds are "
    "of generating, once. Counts are means over seeds; a dash: from before they were recorded."
)


def stages_of(arm: Arm) -> list[str]:
    """The stages of an arm's augmentation, as its composed config has them."""
    job = next(iter(arm.runs.values()))
    return list((job.config.get("augmentation") or {}).get("stages") or ())


def augmentation_grid(frame: Frame) -> Grid | None:
    """Rows: arms. Columns: stages, the records after them, what was elicited at what cost, and the score.

    None where no arm has a stage.
    """
    if not any(map(stages_of, frame.arms)):
        return None
    costs = [name for name in ELICITED if name != "judge_flops" or any(_elicited(a, name) > 0 for a in frame.arms)]
    rows = []
    for arm in frame.arms:
        name = arm.headline(arm.skill)
        score = Cell("–") if name is None else Cell.of(mean_of(arm, arm.skill, name))
        counts = [_count(arm, key) for key in COUNTS]
        elicited = [cost_cell(key, _elicited(arm, key)) for key in costs]
        spent = [cost_cell(key, mean_cost(arm, key)) for key in SPENT]
        stages = ", ".join(stages_of(arm)) or "none"
        rows.append([*(arm.values[key] for key in frame.columns), stages, *counts, *spent, *elicited, score])
    titles = [*COUNTS.values(), *SPENT.values(), *(ELICITED[name] for name in costs)]
    header = [*frame.columns, "stages", *titles, "score"]
    notes = [CHARGED, OF_TEACHER, f"{seeds_text(frame.arms)}."]
    return Grid("Augmentation", header, rows, notes, len(frame.columns) + 1)


def _elicited(arm: Arm, key: str) -> float:
    """The mean over seeds of a number of the elicitation; 0 without a stage, NaN where it is not known."""
    found = [_of_run(results, key) for results in arm.results()] if stages_of(arm) else [0.0]
    return sum(found) / len(found)


def _of_run(results: Any, key: str) -> float:
    page = results.get("elicitation")
    if page is None:
        return math.nan
    return teacher_flops(results, page["teacher_tokens"]) if key == TEACHER_FLOPS else float(page[key])


def _count(arm: Arm, key: str) -> Cell:
    found = [results["records"]["train"][key] for results in arm.results() if results.get("records")]
    return Cell.number(None) if not found else cost_cell("tokens", sum(found) / len(found))
