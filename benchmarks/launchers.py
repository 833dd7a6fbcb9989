"""Processor time of a job by the way in which the default launcher starts it: by an interpreter of its own, or forked.

python -m benchmarks.launchers                three pairs
python -m benchmarks.launchers --rounds 1
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
    rounds = parser.parse_args().rounds
    server, found = ForkServer(MODULES), dict[str, list[float]](forked=[], interpreter=[])
    with ROWS.open("a") as file, tempfile.TemporaryDirectory() as root:
        file.write(json.dumps({"kind": "machine", **machine.described()}) + "\n")
        for index in range(rounds):
            for launcher, seeds in (("forked", index), ("interpreter", rounds + index)):
                command = [sys.executable, str(ROOT / "run.py"), *JOB, f"seed={seeds}", f"run.root={root}"]
                if launcher == "forked":
                    cpu, wall = measured(server.process.pid, lambda job=command: forked(server, job))
                else:
                    cpu, wall = measured(os.getpid(), lambda job=command: interpreted(job))
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
