"""Processor time of one more job of a sweep: an interpreter each, forks of one that has imported all, one for all.

python -m benchmarks.launchers                    sweeps of two and six jobs in turn, three rounds
python -m benchmarks.launchers --jobs 2 3 --rounds 1
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import machine

ROWS = Path(__file__).parent / "results" / "launchers-cpu.jsonl"
LAUNCHERS = {
    "interpreter": ["hydra.launcher.preload=[]"],
    "forked": [],
    "one process": ["hydra/launcher=basic"],
}
JOB = [
    *(
        "teacher=tiny",
        "student=tiny",
        "skill=spell_backward",
        "teacher.prepare=null",
        "student.prepare=null",
        "trainer=cpu",
    ),
    *("compare=null", "optim.steps=2", "evaluation=none", "skill.train=32", "skill.validation=8", "skill.test=8"),
]
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl: processes of the sweep that survive it are waited for here


def seconds(launcher: str, jobs: int) -> float:
    """Processor seconds of a whole sweep, all of its processes included."""
    before = _children()
    with tempfile.TemporaryDirectory() as root:
        seeds = ",".join(map(str, range(1, jobs + 1)))
        words = [*JOB, *LAUNCHERS[launcher], f"seed={seeds}", f"run.root={root}"]
        command = [sys.executable, "run.py", "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{launcher}: {done.stderr[-2000:]}")
        while _reaped():
            pass
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reaped() -> bool:
    try:
        os.wait()
    except ChildProcessError:
        return False
    return True


def table(rows: Sequence[Mapping[str, float | str]], few: int, many: int) -> list[str]:
    """Processor seconds of one more job, by launcher: median, and all rounds."""
    lines = ["| launcher | a job more, CPU s | rounds |", "|---|---|---|"]
    for launcher in LAUNCHERS:
        found = {
            jobs: [float(row["cpu_seconds"]) for row in rows if (row["launcher"], row["jobs"]) == (launcher, jobs)]
            for jobs in (few, many)
        }
        each = [(more - less) / (many - few) for less, more in zip(found[few], found[many], strict=True)]
        shown = ", ".join(f"{value:.2f}" for value in each)
        lines.append(f"| {launcher} | {statistics.median(each):.2f} | {shown} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs=2, default=(2, 6), help="of the shorter and the longer sweep")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    rows = []
    with ROWS.open("a") as file:
        file.write(json.dumps({"kind": "machine", **machine.described()}) + "\n")
        for index in range(given.rounds):
            for jobs in given.jobs:
                for launcher in LAUNCHERS:
                    began = time.time()
                    used = seconds(launcher, jobs)
                    row = {"launcher": launcher, "jobs": jobs, "round": index, "cpu_seconds": round(used, 2)}
                    rows.append({**row, "wall_seconds": round(time.time() - began, 1)})
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
    print("\n".join(table(rows, *given.jobs)))


if __name__ == "__main__":
    main()
