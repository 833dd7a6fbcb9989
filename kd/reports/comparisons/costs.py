"""What training cost: the budget of runs, by arm."""

from collections.abc import Sequence
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
    "seconds": "training\nseconds",
}


def spent(job: Job, name: str) -> float | int:
    """A cost of a run; runs from before a judge was counted have no judge_flops."""
    return (job.results or {})["budget"].get(name, 0)


def shown_costs(jobs: Sequence[Job]) -> list[str]:
    """The costs to be shown: a judge's where there is one."""
    return [name for name in COSTS if name != "judge_flops" or any(spent(job, name) for job in jobs)]


def costs_of(arms: Sequence[Arm]) -> list[str]:
    """The costs to be shown of arms."""
    return shown_costs([job for arm in arms for job in arm.runs.values()])


def mean_cost(arm: Arm, name: str) -> float:
    """The mean of a cost over seeds."""
    return float(np.mean([spent(job, name) for job in arm.runs.values()]))


def steps_of(arm: Arm) -> float | None:
    """The steps that a run of the arm may make (`optim.steps`); None where its config is not known."""
    job: Any = next(iter(arm.runs.values()))
    steps = (job.config.get("optim") or {}).get("steps")
    return float(steps) if isinstance(steps, int | float) else None


def cost_cell(name: str, value: float | int) -> Cell:
    """A cost as text, and as a number."""
    if name.endswith("flops"):
        return Cell.number(value, f"{value:.2e}")
    return Cell.number(value, f"{value:.1f}" if name == "seconds" else f"{value:,.0f}")
