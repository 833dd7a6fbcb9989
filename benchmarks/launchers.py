"""Processor time of a job by the way in which it is started: by an interpreter of its own, forked, or in one process.

python -m benchmarks.launchers                          three pairs of a job by an interpreter and a forked one
python -m benchmarks.launchers --rounds 1 --jobs 60     one pair; a sweep of 60 jobs in one process, and its memory
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from benchmarks import machine
from hydra_plugins.kd_launcher.fork_server import ForkServer

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "launchers-cpu.jsonl"
MODULES = ["kd.command", "kd.sweeps.preloaded"]  # as in conf/hydra/launcher/process.yaml
JOB = [
    *("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null", "student.prepare=null"),
    *("trainer=cpu", "compare=null", "optim.steps=2", "evaluation=none", "run.page=false"),
    *("skill.train=32", "skill.validation=8", "skill.test=8"),
]

IN_ONE = [*(word for word in JOB if word != "evaluation=none"), "evaluation=quick", "hydra/launcher=basic"]
WARM = 3  # jobs of a process that fill its caches


class JobMeter(Callback):
    """Hydra callback: a row for each job of a sweep in one process, as it has ended.

    path: the file of the rows.
    """

    def __init__(self, path: str):
        self.path = Path(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the processor seconds so far, the memory after a collection of garbage, and the seconds after it."""
        ended = time.process_time()
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        row = {"ended": ended, "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "went_on": time.process_time()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def in_one_process(jobs: int, root: str) -> list[dict[str, float]]:
    """The rows of a sweep: of each job but the first, its processor seconds, and the memory after it.

    Raises SystemExit if it fails.
    """
    path = Path(root) / "jobs.jsonl"
    rates = ",".join(f"{1e-3 + 1e-6 * index:.6f}" for index in range(jobs))
    meter = "+hydra.callbacks.meter"
    command = [sys.executable, "run.py", "-m", *IN_ONE, f"optim.lr={rates}", f"run.root={root}"]
    command += [f"{meter}._target_=benchmarks.launchers.JobMeter", f"{meter}.path={path}"]
    if code := subprocess.run(command, check=False, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"the sweep ended with exit code {code}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {"cpu_seconds": round(after["ended"] - before["went_on"], 3), "mib": round(after["mib"], 1)}
        for before, after in pairwise(rows)
    ]


def growth(rows: list[dict[str, float]]) -> float:
    """The slope of a straight line through the memory after each job; MiB a job."""
    return float(np.polyfit(range(len(rows)), [row["mib"] for row in rows], 1)[0])


def children(pid: int) -> float:
    """Processor seconds of the children that a process has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def forked(server: ForkServer, command: list[str]) -> int:
    """Its exit code, as the launcher starts a job among several."""
    job = server.start(command, dict(os.environ))
    return -1 if job is None else job.wait()


def interpreted(command: list[str]) -> int:
    """Its exit code, as the launcher starts a single job."""
    return subprocess.run(command, check=False).returncode


def measured(pid: int, work: Callable[[], int]) -> tuple[float, float]:
    """Processor and wall seconds of a child of process `pid`. Raises SystemExit if it fails."""
    before, began = children(pid), time.perf_counter()
    if code := work():
        sys.exit(f"the job ended with exit code {code}")
    return children(pid) - before, time.perf_counter() - began


def main() -> None:
    """Measure in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=0, help="of a sweep in one process; 0: none")
    given = parser.parse_args()
    with ROWS.open("a") as file:
        file.write(json.dumps({"kind": "machine", **machine.described()}) + "\n")
        if given.rounds:
            pairs(given.rounds, file)
        if given.jobs:
            sweep(given.jobs, file)


def sweep(jobs: int, file: IO[str]) -> None:
    """Measure a sweep in one process, and print what a job takes and by how much the process grows."""
    with tempfile.TemporaryDirectory() as root:
        rows = in_one_process(jobs, root)
    for num, row in enumerate(rows, start=1):
        file.write(json.dumps({"launcher": "in one process", "job": num, **row}) + "\n")
    later = rows[WARM:] or rows
    middle = statistics.median(row["cpu_seconds"] for row in later)
    print(f"in one process: {middle:.2f} CPU s a job, {growth(later):+.2f} MiB a job over {len(later)} jobs")


def pairs(rounds: int, file: IO[str]) -> None:
    """Measure jobs by an interpreter and forked ones in turn, and print medians."""
    server, found = ForkServer(MODULES), dict[str, list[float]](forked=[], interpreter=[])
    with tempfile.TemporaryDirectory() as root:
        for index in range(rounds):
            for launcher, seeds in (("forked", index), ("interpreter", rounds + index)):
                command = [sys.executable, str(ROOT / "run.py"), *JOB, f"seed={seeds}", f"run.root={root}"]
                if launcher == "forked":
                    cpu, wall = measured(server.process.pid, partial(forked, server, command))
                else:
                    cpu, wall = measured(os.getpid(), partial(interpreted, command))
                found[launcher].append(cpu)
                row = {
                    "launcher": launcher,
                    "round": index,
                    "cpu_seconds": round(cpu, 2),
                    "wall_seconds": round(wall, 1),
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
    server.close()
    print("| a job by | CPU s | rounds |\n|---|---|---|")
    for launcher, values in found.items():
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {launcher} | {statistics.median(values):.2f} | {shown} |")


if __name__ == "__main__":
    main()
