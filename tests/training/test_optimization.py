"""The learning rate of every step by hand, and of a run that went on.

Run: python -m pytest tests/training/test_optimization.py
"""

from collections.abc import Callable
from math import cos, pi

import pytest
import torch
from torch import nn

from kd.training.optimization import Optimization
from tests import runs


def built(fraction: Callable[[], float] | None = None, **settings):
    """Optimizer and schedule of one weight, at lr 8."""
    defaults = {"steps": 8, "window": 1, "lr": 8.0, "schedule": "constant", "warmup": 0.5}
    return Optimization(**defaults | settings).build([nn.Parameter(torch.zeros(2, 2))], fraction=fraction)


def rates(optimizer, schedule, steps: int) -> list[float]:
    """What the next steps learn at."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2, 4, 6, 8, 8, 8, 8, 8]),  # 4 of 8 steps rise
        ({"warmup": 0.0}, [8] * 8),
        ({"warmup": 0.125}, [8] * 8),  # one step of warm-up has the whole rate
        ({"warmup": 1.0}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"schedule": "linear"}, [2, 4, 6, 8, 8, 6, 4, 2]),
        ({"schedule": "linear", "warmup": 0.0}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"schedule": "cosine"}, [2, 4, 6, 8, *(4 * (1 + cos(pi * k / 4)) for k in range(4))]),
        ({"schedule": "cosine", "warmup": 0.25, "steps": 4}, [8, *(4 * (1 + cos(pi * k / 3)) for k in range(3))]),
    ],
)
def test_every_steps_learning_rate_by_hand(settings, expected):
    steps = settings.get("steps", 8)
    assert rates(*built(**settings), steps) == pytest.approx(expected)
    assert rates(*built(lambda: 0.0, **settings), steps) == pytest.approx(expected)  # a budget that is never reached


@pytest.mark.parametrize("at", [1, 3, 4, 6])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_that_goes_on_has_the_rates_of_one_that_never_stopped(schedule, at):
    whole = rates(*built(schedule=schedule), 8)
    optimizer, scheduler = built(schedule=schedule)
    before = rates(optimizer, scheduler, at)
    fresh, resumed = built(schedule=schedule)
    fresh.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert before + rates(fresh, resumed, 8 - at) == whole


def test_a_budget_moves_the_schedule_on():
    """A quarter of the budget for each step: as if every step were two."""
    spent = iter([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates(*built(lambda: next(spent), schedule="linear"), 4) == pytest.approx([2, 6, 8, 4])
    near = iter([0.0, 0.45, 0.5])  # 3.6 steps of 4: no further than the end of the warm-up
    assert rates(*built(lambda: next(near), schedule="linear"), 2) == pytest.approx([2, 8])


def test_the_first_step_of_a_warm_up_learns(tmp_path):
    parts = runs.train(runs.config("optim.steps=1", "optim.warmup=1.0"), tmp_path)
    start = runs.build(runs.config("optim.steps=1")).module.student.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in parts.module.student.state_dict().items())
