"""Two checkouts of this repository against each other, in turn: A, B, A, B, ...; each measurement in its own process.

git worktree add /tmp/before COMMIT
python -m benchmarks.checkouts /tmp/before . --rounds 3

A whole off-policy step (as benchmarks.step), generation for 8 rows (as benchmarks.decoding), and the start of
`python run.py --cfg job`, by each checkout's own code.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.child import QUIET
from benchmarks.head import Rows

SIZE = {"vocab_size": 49152}
STEP: dict[str, Any] = {"lengths": "variable", "precision": "fp32", "steps": 5, "layers": [30, 8], "size": SIZE}
DECODING: dict[str, Any] = {"rows": 8, "precision": "fp32", "repeats": 2, "layers": 8, "size": SIZE, "new": 64}
CHILDREN = {
    "step": ["benchmarks.step", {**STEP, "contender": "ours", "objective": "fkl"}],
    "decoding": ["benchmarks.decoding", {**DECODING, "contender": "ours"}],
}
WARM = {"step": 2, "decoding": 0}  # first values that are not counted; decoding leaves its own out


def ask(checkout: Path, command: list[str], threads: int) -> tuple[str, float, float]:
    """The output of python in a checkout, and its wall and processor seconds."""
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)[:80]}: {done.stderr.strip().splitlines()[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, time.perf_counter() - started, cpu


def measured(kind: str, checkout: Path, threads: int) -> dict[str, float]:
    """Wall and processor seconds of one step, one call, or one start."""
    if kind == "start":
        _, wall, cpu = ask(checkout, ["run.py", "--cfg", "job"], threads)
        return {"wall": wall, "cpu": cpu}
    module, case = CHILDREN[kind]
    said = json.loads(ask(checkout, ["-m", module, "--child", json.dumps(case)], threads)[0].strip().splitlines()[-1])
    times = said["times"][WARM[kind] :]
    return {key: statistics.median(one[key] for one in times) for key in ("wall", "cpu")}


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All kinds, in turn; medians of both, and of the ratios within rounds."""
    rows = Rows(options.out, machine.described())
    console.print(rows.header)
    checkouts = {"before": options.before.resolve(), "after": options.after.resolve()}
    table = Table(title="seconds (median over rounds); after / before, paired within rounds: median [least, greatest]")
    for column in ("", "before, CPU s", "after, CPU s", "CPU", "wall"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind in options.kinds:
        found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
        for turn in range(options.rounds):
            for name in ("before", "after") if turn % 2 == 0 else ("after", "before"):
                found[name].append(measured(kind, checkouts[name], options.threads))
                rows.add({"kind": kind, "checkout": name, "round": turn}, found[name][-1])
        cells = [f"{statistics.median(one['cpu'] for one in found[name]):.2f}" for name in found]
        table.add_row(kind, *cells, *(ratios(found, key) for key in ("cpu", "wall")))
    console.print(table)
    return 0


def ratios(found: dict[str, list[dict[str, float]]], key: str) -> str:
    """After / before."""
    values = [b[key] / a[key] for a, b in zip(found["before"], found["after"], strict=True)]
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkouts", description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=[*CHILDREN, "start"], default=[*CHILDREN, "start"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkouts-cpu.jsonl")
    return parser


if __name__ == "__main__":
    width = None if sys.stdout.isatty() else 140
    sys.exit(benchmark(_parser().parse_args(sys.argv[1:]), Console(width=width)))
