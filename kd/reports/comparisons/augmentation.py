"""What augmentation made of the training records, and what it cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.reports.comparisons.costs import OF_TEACHER, TEACHER_FLOPS, WHERE_ANY, cost_cell, mean_cost, teacher_flops
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
    "money": "money",
    "seconds": "elicitation\nseconds",
}
QUALITY = {"acceptance": "accepted", "score": "score of\nthe data", "unique": "unique\nresponses"}
SPENT = {"teacher_tokens": "all teacher\ntokens", "generated_tokens": "all generated\ntokens"}
CHARGED = (
    "Accepted: records after the last stage over those before the first. Score of the data: mean of the skill's metric "
    "over the responses that are learnt from, 128 at most; unique: different ones over all. Elicited text is charged "
    "to every run that learns on it; all: of elicitation and training together. Seconds are of generating, once. "
    "Numbers are means over seeds; a dash: not known, or from before they were recorded."
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
    costs = [name for name in ELICITED if name not in WHERE_ANY or any(_elicited(a, name) > 0 for a in frame.arms)]
    rows = []
    for arm in frame.arms:
        name = arm.headline(arm.skill)
        score = Cell("–") if name is None else Cell.of(mean_of(arm, arm.skill, name))
        counts = [_count(arm, key) for key in COUNTS]
        elicited = [cost_cell(key, _elicited(arm, key)) for key in costs]
        spent = [cost_cell(key, mean_cost(arm, key)) for key in SPENT]
        good = [Cell.number(_quality(arm, key)) for key in QUALITY]
        stages = ", ".join(stages_of(arm)) or "none"
        rows.append([*(arm.values[key] for key in frame.columns), stages, *counts, *good, *spent, *elicited, score])
    titles = [*COUNTS.values(), *QUALITY.values(), *SPENT.values(), *(ELICITED[name] for name in costs)]
    header = [*frame.columns, "stages", *titles, "score"]
    notes = [CHARGED, OF_TEACHER, f"{seeds_text(frame.arms)}."]
    return Grid("Augmentation", header, rows, notes, len(frame.columns) + 1)


def _quality(arm: Arm, key: str) -> float | None:
    """The mean over seeds of a number of the records after the last stage; None where it is not known in each.

    acceptance: records after the last stage over those before the first, above 1 where stages make more.
    """
    found: list[float | None] = []
    for results in arm.results():
        stages = (results.get("elicitation") or {}).get("stages") or ()
        if not stages:
            return None
        before, after = stages[0]["given"], stages[-1]["kept"]
        found.append(after / before if key == "acceptance" and before else stages[-1]["quality"].get(key))
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _elicited(arm: Arm, key: str) -> float:
    """The mean over seeds of a number of the elicitation; 0 without a stage, NaN where it is not known."""
    found = [_of_run(results, key) for results in arm.results()] if stages_of(arm) else [0.0]
    return sum(found) / len(found)


def _of_run(results: Any, key: str) -> float:
    page = results.get("elicitation")
    if page is None:
        return math.nan
    return teacher_flops(results, page["teacher_tokens"]) if key == TEACHER_FLOPS else float(page.get(key, 0))


def _count(arm: Arm, key: str) -> Cell:
    found = [results["records"]["train"][key] for results in arm.results() if results.get("records")]
    return Cell.number(None) if not found else cost_cell("tokens", sum(found) / len(found))


def stages_grid(stages: Sequence[Mapping[str, Any]]) -> Grid:
    """One line for each stage of an elicitation (`kd.runs.costs.StageAccount`): its records, drops and cost."""
    rows = []
    for stage in stages:
        drops = {"no room": stage["left_out"], **stage["dropped"]}
        counts = [stage["given"], stage["kept"], stage["prompts"]]
        cost = stage["cost"]
        tokens = cost["teacher_tokens"] + cost["generated_tokens"]
        rows.append(
            [
                stage["name"],
                *(Cell.number(count, f"{count:,}") for count in counts),
                Cell.number(tokens, f"{tokens:,}"),
                Cell.number(cost["seconds"], f"{cost['seconds']:.1f}"),
                ", ".join(f"{reason} {count}" for reason, count in drops.items() if count) or "–",
            ]
        )
    header = ["stage", "records\nbefore", "after", "prompts", "tokens", "seconds", "dropped"]
    return Grid("Stages", header, rows, ["Tokens: read by a teacher or generated by the student."])
