"""A whole on-policy training step, writing and optimizer included, against TRL's DistillationTrainer and GKD.

python -m benchmarks.rollouts                                       8 and 64 responses a step, fp32 and bf16
python -m benchmarks.rollouts --windows 8 --precisions bf16 --steps 2 --rounds 1 --contenders ours distillation
python -m benchmarks.rollouts --small                               seconds: does it run?
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import child, machine
from benchmarks.head import FOREIGN, Rows
from benchmarks.on_policy import CONTENDERS, NEW, Watched, deviations, least_work
from benchmarks.training import BATCH

FULL: dict[str, Any] = {"layers": [30, 8], "size": {"vocab_size": 49152}}
SMALL: dict[str, Any] = {
    "layers": [2, 1],
    "size": {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 96, "num_attention_heads": 9},
}
GATED = ("ours", "distillation", "gkd")
GATE = {"fp32": {"loss": 1e-6, "gradient": 1e-5}, "bf16": {"loss": 2e-2, "gradient": 2e-2}}


DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def warm(window: int) -> int:
    """Steps that are not counted."""
    return 2 if window == BATCH else 1


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
    """Clocks of the steps, and the peak. Raises ValueError if a step did not write what it was asked for."""
    watched = Watched()
    CONTENDERS[case["contender"]](case, watched)
    asked = case["window"] * NEW
    if watched.tokens != [asked] * case["steps"]:
        raise ValueError(f"{case['contender']} wrote {watched.tokens} tokens in its steps; {asked} were asked for")
    return {"times": watched.rows, "tokens": asked, "peak_bytes": child.peak()}


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All cases; 1 if our loss or gradients are not the definition's, and then nothing is timed."""
    rows, shape = Rows(options.out, machine.described()), SMALL if options.small else FULL
    shape = {**shape, "keep": options.keep, "objective": "rkl"}
    console.print(rows.header)
    if not _gate(rows, options, shape, console):
        return 1
    asked = list(_cases(options, shape))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(asked))
        for case in asked:
            bar.update(task, description=f"{case['precision']} {case['window']} {case['contender']}")
            if case["contender"] == options.contenders[0]:
                rows.add({**case, "kind": "limit"}, machine.gemm_limit(DTYPE[case["precision"]]))
            rows.add(case, child.ask(__spec__.name, case, options.threads))
            bar.advance(task)
    console.print(report(rows))
    return 0


def _gate(rows: Rows, options: argparse.Namespace, shape: Mapping[str, Any], console: Console) -> bool:
    """One step of each contender on the same given text, against float64."""
    passed = True
    names = [name for name in GATED if name in options.contenders]
    for precision in options.precisions:
        case = {"kind": "gate", "gate": True, "precision": precision, "window": BATCH, "steps": 1, **shape}
        said = child.ask(__spec__.name, {**case, "names": names}, options.threads)
        rows.add(case, said)
        console.print(f"{precision}, relative deviation from float64 of loss and of the worst tensor's gradient:")
        console.print({name: _shown(found) for name, found in said.items()})
        passed = passed and _passes(said, precision)
    return passed


def _shown(found: Any) -> Any:
    if not isinstance(found, dict) or "failed" in found:
        return found
    return {key: f"{value:.1e}" for key, value in found.items()}


def _passes(said: Mapping[str, Any], precision: str) -> bool:
    """Where the rounding of the precision alone (`plain`) passes the bound, ours may be off by that and a tenth."""
    own, plain = said.get("ours"), said.get("plain")
    if own is None or plain is None or "failed" in own:
        return False
    return all(own[key] <= max(bound, 1.1 * plain[key]) for key, bound in GATE[precision].items())


def _cases(options: argparse.Namespace, shape: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Contenders in turn within a round. The peers' defaults are run with one micro-batch a step only."""
    for precision, window in itertools.product(options.precisions, options.windows):
        steps = max(1, options.steps * BATCH // window) + warm(window)
        for turn, name in itertools.product(range(options.rounds), options.contenders):
            if window == BATCH or not name.endswith("_default"):
                case = {"kind": "step", "gate": False, "precision": precision, "window": window, "steps": steps}
                yield {**case, "contender": name, "round": turn, **shape}


def report(rows: Rows) -> Table:
    """Medians, for each micro-batch of 8 responses; theirs / ours, and the least and greatest of the rounds."""
    table = Table(
        title="a micro-batch of 8: seconds (~ others used the machine), peak GiB; theirs / ours (memory: ours / theirs)"
    )
    for column in ("dtype", "window", "by", "CPU s", "wall s", "peak GiB", "CPU", "wall", "memory", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    timed = rows.of("step")
    for precision, window in dict.fromkeys((row["precision"], row["window"]) for row in timed):
        chosen = [row for row in timed if (row["precision"], row["window"]) == (precision, window)]
        own = [row for row in chosen if row["contender"] == "ours"]
        limit = max(r["said"]["cpu"] for r in rows.of("limit") if r["precision"] == precision)
        for name in dict.fromkeys(row["contender"] for row in chosen):
            theirs = [row for row in chosen if row["contender"] == name]
            table.add_row(precision, str(window), name, *_cells(theirs, own), _share(theirs, limit))
        table.add_section()
    return table


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over all counted steps, for each micro-batch; walls of quiet moments where there are any."""
    failed = [row["said"]["failed"] for row in rows if "failed" in row["said"]]
    if failed or not rows:
        return {"failed": failed[0] if failed else "not asked for"}
    share = BATCH / rows[0]["window"]
    times = [clock for row in rows for clock in row["said"]["times"][warm(row["window"]) :]]
    quiet = [clock["wall"] for clock in times if clock["foreign"] <= FOREIGN]
    return {
        "cpu": share * machine.spread(clock["cpu"] for clock in times)["median"],
        "wall": share * machine.spread(quiet or [clock["wall"] for clock in times])["median"],
        "loud": not quiet,
        "peak": machine.spread(row["said"]["peak_bytes"] for row in rows)["median"],
    }


def _cells(theirs: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> list[str]:
    one, ours = summary(theirs), summary(own)
    if "failed" in one:
        return ["failed: " + one["failed"][:60], *[""] * 5]
    cells = [f"{one['cpu']:.2f}", f"{one['wall']:.2f}" + "~" * one["loud"], f"{one['peak'] / 2**30:.2f}"]
    if "failed" in ours or theirs[0]["contender"] == "ours":
        return [*cells, "", "", ""]
    return [*cells, *(_ratio(theirs, own, kind) for kind in ("cpu", "wall")), f"{ours['peak'] / one['peak']:.2f}"]


def _share(rows: Sequence[Mapping[str, Any]], limit: float) -> str:
    """The least time that the step's arithmetic takes on this machine, of the time that it took."""
    one = summary(rows)
    return "" if "failed" in one else f"{least_work(rows[0]) / limit / one['cpu']:.0%}"


def _ratio(theirs: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], kind: str) -> str:
    rounds = [summary([a])[kind] / summary([b])[kind] for a, b in zip(theirs, own, strict=False)]
    return f"{summary(theirs)[kind] / summary(own)[kind]:.2f} ({min(rounds):.2f}-{max(rounds):.2f})"


def main(arguments: list[str]) -> int:
    """Parent or child."""
    if arguments[:1] == ["--child"]:
        case = json.loads(arguments[1])
        child.answer(deviations(case, case["names"]) if case["gate"] else measured(case))
        return 0
    return benchmark(_parser().parse_args(arguments), Console(width=None if sys.stdout.isatty() else 140))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 64], help="responses a step, multiples of 8")
    parser.add_argument("--precisions", nargs="+", choices=list(GATE), default=list(GATE))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument(
        "--steps", type=int, default=8, help="counted micro-batches per process, after one or two steps"
    )
    parser.add_argument("--rounds", type=int, default=2, help="processes per contender and case, in turn")
    parser.add_argument("--keep", action="store_true", help="the peers' processes keep freed memory too, as ours does")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rollouts.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
