"""A whole off-policy training step, optimizer included, against TRL's GKD.

python -m benchmarks.step                                      fixed and variable lengths, fp32 and bf16
python -m benchmarks.step --steps 4 --rounds 1 --precisions bf16 --lengths fixed
python -m benchmarks.step --small                              seconds: does it run?
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import child, machine
from benchmarks.head import FOREIGN, Rows
from benchmarks.training import CONTENDERS, least_gflop

WARM = 2  # steps that are not counted
FULL: dict[str, Any] = {"layers": [30, 8], "size": {"vocab_size": 49152}}
SMALL: dict[str, Any] = {
    "layers": [2, 1],
    "size": {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 96, "num_attention_heads": 9},
}
GATE = {"fp32": 1e-4, "bf16": 3e-2}  # of each step's loss: weights, gradients and updates must agree for that
PAIRS = [("ours", "fkl"), ("trl", "fkl"), ("ours", "jsd"), ("trl_default", "jsd")]  # GKD's default is JSD
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All cases; 1 if our losses are not TRL's."""
    rows = Rows(options.out, machine.described())
    console.print(rows.header)
    shape = SMALL if options.small else FULL
    cases = list(itertools.product(options.lengths, options.precisions))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(cases) * options.rounds * (len(PAIRS) + 1))
        for lengths, precision in cases:
            case = {"lengths": lengths, "precision": precision, "steps": options.steps + WARM, **shape}
            for turn in range(options.rounds):
                bar.update(task, description=f"{lengths} {precision} limit")
                rows.add({**case, "kind": "limit"}, machine.gemm_limit(DTYPE[precision]))
                bar.advance(task)
                for name, objective in PAIRS:
                    bar.update(task, description=f"{lengths} {precision} {name} {objective}")
                    asked = {**case, "contender": name, "objective": objective}
                    rows.add({**asked, "kind": "step", "round": turn}, child.ask(__spec__.name, asked, options.threads))
                    bar.advance(task)
    table, same = report(rows, cases, shape, options.steps + WARM)
    console.print(table)
    return 0 if same else 1


def report(rows: Rows, cases: list[tuple[str, str]], shape: Mapping[str, Any], steps: int) -> tuple[Table, bool]:
    """The table, and whether each step's loss was the same for ours and for TRL tuned."""
    table = Table(title="seconds a step (~ others used the machine); theirs / ours; share of the GEMM limit")
    for column in (
        "lengths",
        "dtype",
        "by",
        "CPU s",
        "wall s",
        "peak GiB",
        "CPU",
        "wall",
        "limit CPU",
        "limit wall",
        "losses",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    same = True
    for lengths, precision in cases:
        case = {"lengths": lengths, "precision": precision, "steps": steps, **shape}
        chosen = [row for row in rows.rows if (row["lengths"], row["precision"]) == (lengths, precision)]
        limits = [row["said"] for row in chosen if row["kind"] == "limit"]
        limit = {kind: max(said[kind] for said in limits) for kind in ("cpu", "wall")}
        said = {
            pair: _summary([r["said"] for r in chosen if (r.get("contender"), r.get("objective")) == pair])
            for pair in PAIRS
        }
        for name, objective in PAIRS:
            theirs, own = said[name, objective], said["ours", objective]
            gap = _gap(theirs, own)
            same = same and (name != "trl" or (gap is not None and gap <= GATE[precision]))
            table.add_row(
                lengths, precision, f"{name} {objective}", *_cells(theirs, own, limit, least_gflop(case)), _told(gap)
            )
        table.add_section()
    return table, same


def _summary(said: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [answer["failed"] for answer in said if "failed" in answer]
    if failed or not said:
        return {"failed": failed[0] if failed else "not asked for"}
    times = [clock for answer in said for clock in answer["times"][WARM:]]
    quiet = [clock["wall"] for clock in times if clock["foreign"] <= FOREIGN]
    return {
        "cpu": machine.spread(clock["cpu"] for clock in times)["median"],
        "wall": machine.spread(quiet or [clock["wall"] for clock in times])["median"],
        "loud": not quiet,
        "peak": max(answer["peak_bytes"] for answer in said),
        "losses": said[0]["losses"],
    }


def _gap(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> float | None:
    if "failed" in theirs or "failed" in own:
        return None
    pairs = zip(theirs["losses"], own["losses"], strict=False)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def _told(gap: float | None) -> str:
    return "" if gap is None else f"{gap:.0e}"


def _cells(theirs: Mapping[str, Any], own: Mapping[str, Any], limit: Mapping[str, float], work: float) -> list[str]:
    if "failed" in theirs:
        return ["failed: " + theirs["failed"][:60], *[""] * 6]
    cells = [f"{theirs['cpu']:.2f}", f"{theirs['wall']:.2f}" + "~" * theirs["loud"], f"{theirs['peak'] / 2**30:.2f}"]
    ratios = [f"{theirs[kind] / own[kind]:.2f}" if "failed" not in own else "" for kind in ("cpu", "wall")]
    return cells + ratios + [f"{work / limit[kind] / theirs[kind]:.0%}" for kind in ("cpu", "wall")]


def main(arguments: list[str]) -> int:
    """Parent or child."""
    if arguments[:1] == ["--child"]:
        case = json.loads(arguments[1])
        said = CONTENDERS[case["contender"]](case)
        child.answer({**said, "peak_bytes": child.peak()})
        return 0
    return benchmark(_parser().parse_args(arguments), Console(width=None if sys.stdout.isatty() else 140))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "variable"], default=["fixed", "variable"])
    parser.add_argument("--precisions", nargs="+", choices=list(GATE), default=list(GATE))
    parser.add_argument("--steps", type=int, default=6, help=f"counted steps per process, after {WARM} others")
    parser.add_argument("--rounds", type=int, default=2, help="processes per contender and case, in turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
