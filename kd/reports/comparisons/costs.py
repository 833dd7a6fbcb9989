"""What training cost: the budget of runs, by arm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.reports.frame import Arm
from kd.reports.grid import Cell
from kd.reports.runs import Job

OF_TRAINING = "Costs are of training: seconds are wall clock, without validation and evaluation."
COSTS = {  # of a run's budget, in the order of the columns
    "student_flops": "student\nFLOPs",
    "tokens": "tokens",
    "teacher_tokens": "teacher\ntokens",
    "generated_tokens": "generated\ntokens",
    "judge_flops": "judge\nFLOPs",
    "money": "money",
    "seconds": "training\nseconds",
    "elicitation_seconds": "elicitation\nseconds",
}
TEACHER_FLOPS = "teacher_flops"
TITLES = {**COSTS, TEACHER_FLOPS: "teacher\nFLOPs"}
WHERE_ANY = ("judge_flops", "money", "elicitation_seconds")  # shown where one is above 0
OF_TEACHER = "Teacher FLOPs: its tokens times its FLOPs a token, without attention to earlier tokens."


def spent(job: Job, name: str) -> float | int:
    """A cost of a run; runs from before a cost was counted have none of it, without stages nothing was elicited.

    NaN for the FLOPs of a teacher with unknown FLOPs per token.
    """
    results: Any = job.results or {}
    if name == "elicitation_seconds":
        return (results.get("elicitation") or {}).get("seconds", 0)
    if name == TEACHER_FLOPS:
        return teacher_flops(results, results["budget"]["teacher_tokens"])
    return results["budget"].get(name, 0)


def teacher_flops(results: Mapping[str, Any], tokens: int) -> float:
    """The FLOPs of a run's teacher in reading or generating `tokens`; NaN where those of a token are not known."""
    each = (results.get("efficiency") or {}).get("teacher")
    return 0.0 if not tokens else math.nan if each is None else float(tokens) * each["flops_per_token"]


def shown_costs(jobs: Sequence[Job]) -> list[str]:
    """The costs to be shown: a judge's, money, and the seconds of elicitation, where there are any."""
    return [name for name in COSTS if name not in WHERE_ANY or any(spent(job, name) for job in jobs)]


def costs_of(arms: Sequence[Arm]) -> list[str]:
    """The costs to be shown of arms."""
    return shown_costs([job for arm in arms for job in arm.runs.values()])


def budgets_of(arms: Sequence[Arm]) -> list[str]:
    """The costs by which arms are compared: those of `costs_of`, and the teacher's FLOPs where any are known."""
    known = any(mean_cost(arm, TEACHER_FLOPS) > 0 for arm in arms)
    return [*costs_of(arms), *([TEACHER_FLOPS] if known else [])]


def mean_cost(arm: Arm, name: str) -> float:
    """The mean of a cost over seeds; NaN where it is not known."""
    return float(np.mean([spent(job, name) for job in arm.runs.values()]))


def steps_of(arm: Arm) -> float | None:
    """The steps that a run of the arm may make (`optim.steps`); None where its config is not known."""
    job: Any = next(iter(arm.runs.values()))
    steps = (job.config.get("optim") or {}).get("steps")
    return float(steps) if isinstance(steps, int | float) else None


def cost_cell(name: str, value: float | int) -> Cell:
    """A cost as text, and as a number."""
    if math.isnan(value):
        return Cell("–")
    if name.endswith("flops"):
        return Cell.number(value, f"{value:.2e}")
    if name == "money":
        return Cell.number(value, f"{value:.4g}")
    return Cell.number(value, f"{value:.1f}" if name.endswith("seconds") else f"{value:,.0f}")
