"""Numbers that change while a run goes on.

Run: python -m pytest tests/test_schedules.py
"""

import pytest

from kd.schedules import Schedule
from kd.types import Progress


def along(schedule: Schedule, total: int = 10) -> list[float]:
    """At each step of a run, and after the last."""
    return [schedule(Progress(step, total)) for step in range(total + 1)]


def test_a_straight_line():
    assert along(Schedule(5.0, 1.0), total=4) == pytest.approx([5, 4, 3, 2, 1], abs=1e-15)
    assert along(Schedule(-1.0, 0.0), total=2) == [-1, -0.5, 0]
    assert along(Schedule(0.3, 0.3)) == [0.3] * 11


def test_an_exponential():
    """From 8 to 1/2 in four steps: a half each time."""
    assert along(Schedule(8.0, 0.5, "exponential"), total=4) == pytest.approx([8, 4, 2, 1, 0.5])
    assert along(Schedule(-0.01, -1.0, "exponential"), total=2) == pytest.approx([-0.01, -0.1, -1])


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_a_part_of_the_run(shape):
    """Nothing moves before `begin` or after `until`."""
    found = along(Schedule(4.0, 1.0, shape, begin=0.2, until=0.6))
    middle = {"linear": [3.25, 2.5, 1.75], "exponential": [4 * 0.25**0.25, 2, 4 * 0.25**0.75]}[shape]
    assert found == pytest.approx([4, 4, 4, *middle, 1, 1, 1, 1, 1])


def test_a_jump():
    """The step at which that much of the run has passed is the first one after it."""
    assert along(Schedule(0.0, 2.0, begin=0.5, until=0.5)) == [0] * 5 + [2] * 6
    assert along(Schedule(0.0, 2.0, begin=0.0, until=0.0)) == [2] * 11


def test_what_ends_the_run_first_sets_the_pace():
    assert Schedule(0.0, 1.0)(Progress(1, 10, spent=0.5)) == 0.5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"start": 1.0, "end": float("nan")}, "from 1.0 to nan; give two finite numbers"),
        ({"start": 1.0, "end": 0.0, "shape": "exponential"}, "no exponential goes from 1.0 to 0.0"),
        ({"start": -1.0, "end": 1.0, "shape": "exponential"}, "no exponential goes from -1.0 to 1.0"),
        ({"start": 1.0, "end": 0.0, "begin": 0.6, "until": 0.5}, "from 0.6 to 0.5 is no part of a run"),
        ({"start": 1.0, "end": 0.0, "until": 1.5}, "from 0.0 to 1.5 is no part of a run"),
    ],
)
def test_what_is_no_schedule_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Schedule(**settings)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule(5e-3, 1e-3), "0.005 → 0.001"),
        (Schedule(1.0, 0.1, "exponential"), "1 → 0.1 exponentially"),
        (Schedule(0.0, 1.0, begin=0.3, until=0.3), "0 → 1 at 0.3 of the run"),
        (Schedule(0.0, 1.0, until=0.5), "0 → 1 from 0 to 0.5 of the run"),
    ],
)
def test_in_short(schedule, text):
    assert str(schedule) == text
