"""The announcement of a job and the time that is left to its sweep, by hand-made records.

Run: python -m pytest tests/sweeps/test_announcements.py
"""

from pathlib import Path

import pytest

from kd.sweeps.jobs import Job, announce, time_left


def job(num: int, status: str, started: float = 0.0, seconds: float | None = None) -> Job:
    took = None if seconds is None else float(seconds)
    return Job([f"seed={num}", "x=2"], Path("sweep"), num, status, seconds=took, started=float(started))


@pytest.mark.parametrize(
    ("jobs", "left"),
    [
        ([job(0, "running"), job(1, "waiting")], None),
        # one after another, 60 and 100 s: 80 s each, of which 20 s of the third are over
        ([job(0, "done", 0, 60), job(1, "done", 60, 100), job(2, "running", 160), job(3, "waiting")], 60 + 80),
        # two side by side at 180 s: the running ones are 60 s and 20 s old, and four wait: (20 + 60 + 4 * 80) / 2
        (
            [job(0, "done", 0, 80), job(1, "running", 120), job(2, "running", 160)]
            + [job(i, "waiting") for i in range(3, 7)],
            200,
        ),
        # the last two: 60 s until the younger one ends, and not half of the sum
        ([job(0, "done", 0, 80), job(1, "running", 100), job(2, "running", 160)], 60),
        # jobs skipped, or failed at once, do not count for how long one takes
        ([job(0, "skipped"), job(1, "failed", 0, 1), job(2, "done", 0, 80), job(3, "waiting")], 80),
        ([job(0, "done", 0, 80)], 0),
    ],
)
def test_the_time_left_to_a_sweep(jobs: list[Job], left: float | None) -> None:
    assert time_left(jobs, now=180.0) == left


def test_a_job_is_announced_with_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of four ran for 90 s, of which the third is beginning while none is running: 180 s."""
    for one in (job(0, "done", 0, 90), job(1, "done", 90, 90), job(2, "waiting"), job(3, "waiting")):
        Job(one.overrides, tmp_path, one.num, one.status, seconds=one.seconds, started=one.started).write()
    announce(tmp_path, 2, ["seed=2", "x=2"])
    assert capsys.readouterr().out == "── job 2 (3 of 4): seed=2 · sweep ETA 3 min 00 s\n"
