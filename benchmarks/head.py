"""The loss head alone: time, memory and exactness of `over_chunks` against other libraries.

    python -m benchmarks.head                                                      everything; hours on two cores
    python -m benchmarks.head --rows 512 --vocabulary 49152 --objectives fkl       minutes

Rows, gate and columns are described in benchmarks/README.md.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import child, machine
from benchmarks.losses import CONTENDERS, SETTINGS, deviations, problem, reference

GATE = {"fp32": {"loss": 1e-6, "hidden": 1e-5, "weight": 1e-5}, "bf16": {"loss": 2e-2, "hidden": 2e-2, "weight": 2e-2}}
GATE_ROWS = 320  # two and a half chunks
PROBES = (256, 1024)  # rows from which the memory of a case is estimated before it is tried
MARGIN = 0.8  # of the available memory
FOREIGN = 0.15  # share of the machine used by others above which a wall time does not count


# ---- in the child ----------------------------------------------------------------------------------------------------


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
    """Peak extra memory of the first call, then times until `repeats` or `seconds` is reached."""
    if case["contender"] == "ours" or case["keep"]:
        from kd.kernels.allocation import keep_freed_memory

        keep_freed_memory()
    run = CONTENDERS[case["contender"]]
    run(problem(4, 64, case["objective"], case["precision"]))  # imports and thread pools are no memory of the loss
    given = problem(case["rows"], case["vocabulary"], case["objective"], case["precision"])
    child.forget_peak()
    before = child.resident()
    with machine.Clock() as first:
        loss = float(run(given))
    result: dict[str, Any] = {"loss": loss, "extra_bytes": child.peak() - before, "first": first.row(), "times": []}
    spent = 0.0
    while case["repeats"] > len(result["times"]) and (spent < case["seconds"] or not result["times"]):
        given.forget()
        with machine.Clock() as clock:
            run(given)
        result["times"].append(clock.row())
        spent += clock.wall
    return result


def gated(case: Mapping[str, Any]) -> dict[str, Any]:
    """Every contender's deviation from float64 on a few rows of the case's vocabulary."""
    given = problem(case["rows"], case["vocabulary"], case["objective"], case["precision"])
    truth, found = reference(given), {}
    for name in case["contenders"]:
        try:
            found[name] = deviations(given, CONTENDERS[name], truth)
        except Exception as error:  # a peer that cannot run here is a result
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return found


# ---- in the parent ---------------------------------------------------------------------------------------------------


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """Gate, then all cases; prints tables and writes raw rows. 1 if our own gate fails."""
    rows = Rows(options.out, {**machine.described(), "settings": {n: SETTINGS[n] for n in options.contenders}})
    console.print(rows.header)
    products = list(itertools.product(options.vocabulary, options.objectives, options.precisions))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("parity", total=len(products))
        for vocabulary, objective, precision in products:
            bar.update(task, description=f"parity {vocabulary} {objective} {precision}")
            case = {"vocabulary": vocabulary, "objective": objective, "precision": precision}
            question = {**case, "gate": True, "rows": options.gate_rows, "contenders": options.contenders}
            rows.add(
                {**case, "kind": "parity", "rows": options.gate_rows},
                child.ask(__spec__.name, question, options.threads),
            )
            bar.advance(task)
    console.print(parity_table(rows.of("parity"), options.contenders))
    if failed := [row for row in rows.of("parity") if not (passes(row, "ours") or excused(row))]:
        console.print(f"[red]our own gate failed in {len(failed)} cases; nothing is timed")
        return 1
    measure(options, rows, console)
    console.print(time_table(rows.of("time"), options.contenders))
    return 0


def measure(options: argparse.Namespace, rows: "Rows", console: Console) -> None:
    """Contenders in turn, round after round, each time in a new process."""
    cases = list(itertools.product(options.rows, options.vocabulary, options.objectives, options.precisions))
    variants = [(name, False) for name in options.contenders]
    variants += [(name, True) for name in ("plain", "trl") if name in options.contenders]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("time", total=len(cases) * len(variants) * options.rounds)
        for n, vocabulary, objective, precision in cases:
            case = {"rows": n, "vocabulary": vocabulary, "objective": objective, "precision": precision}
            too_big = {}
            for turn, (name, keep) in itertools.product(range(options.rounds), variants):
                label = name + (" +" if keep else "")
                bar.update(task, description=" ".join(map(str, (*case.values(), label))))
                question = {
                    **case,
                    "contender": name,
                    "keep": keep,
                    "repeats": options.repeats,
                    "seconds": options.seconds,
                }
                if name not in too_big:
                    too_big[name] = _too_big(question, options.threads)
                said = too_big[name] or child.ask(__spec__.name, question, options.threads)
                rows.add({**case, "kind": "time", "contender": label, "round": turn}, said)
                bar.advance(task)


def _too_big(question: Mapping[str, Any], threads: int) -> dict[str, Any] | None:
    """The estimate, if the case would not fit; None if it does. Probed only where it is doubtful."""
    room = MARGIN * machine.available_bytes()
    if 20 * 4 * question["rows"] * question["vocabulary"] < room:
        return None
    probe = [child.ask(__spec__.name, {**question, "rows": n, "repeats": 0}, threads) for n in PROBES]
    if any("failed" in said for said in probe):
        return None
    low, high = (said["extra_bytes"] for said in probe)
    estimate = high + (high - low) / (PROBES[1] - PROBES[0]) * (question["rows"] - PROBES[1])
    return None if estimate < room else {"estimated_bytes": estimate, "available_bytes": room}


class Rows:
    """Raw results: kept, and appended to a file of JSON lines as they come."""

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path, self.header, self.rows = path, header, list[dict[str, Any]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({"kind": "machine", **header}) + "\n")

    def add(self, case: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """One measurement."""
        row = {**case, "said": dict(said)}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All of one kind."""
        return [row for row in self.rows if row["kind"] == kind]


# ---- tables ----------------------------------------------------------------------------------------------------------


def passes(row: Mapping[str, Any], contender: str) -> bool:
    """True if all deviations are within the gate."""
    found = row["said"].get(contender, {"failed": "no answer"})
    return "failed" not in found and all(found[name] <= bound for name, bound in GATE[row["precision"]].items())


def excused(row: Mapping[str, Any]) -> bool:
    """Whether ours is outside the gate because the precision is: `plain` is too, and ours by a tenth more at most."""
    own, plain = (row["said"].get(name, {"failed": "no answer"}) for name in ("ours", "plain"))
    if "failed" in own or "failed" in plain or passes(row, "plain"):
        return False
    return all(own[name] <= max(bound, 1.1 * plain[name]) for name, bound in GATE[row["precision"]].items())


def parity_table(rows: Iterable[Mapping[str, Any]], contenders: Iterable[str]) -> Table:
    """Deviations from float64: loss / gradient of the hidden states / of the head."""
    table = Table(title="relative deviation from float64: loss / hidden.grad / head.grad (! outside the gate)")
    for column in ("ids", "objective", "dtype", *contenders):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for name in contenders:
            found = row["said"].get(name, {"failed": row["said"].get("failed", "")})
            exact = "failed" if "failed" in found else "/".join(f"{value:.0e}" for value in found.values())
            cells.append(exact + ("" if passes(row, name) else " !"))
        table.add_row(str(row["vocabulary"]), row["objective"], row["precision"], *cells)
    return table


def time_table(rows: Iterable[Mapping[str, Any]], contenders: Iterable[str]) -> Table:
    """Medians over all rounds, and ours as a fraction of each."""
    table = Table(title="CPU s, wall s (~ others used the machine), extra GiB; ours / theirs of each, medians")
    for column in ("rows", "ids", "objective", "dtype", "by", "CPU s", "wall s", "GiB", "CPU", "wall", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    keys = ("rows", "vocabulary", "objective", "precision")
    for case, group in itertools.groupby(rows, key=lambda row: tuple(row[key] for key in keys)):
        by_name: dict[str, list] = {}
        for row in group:
            by_name.setdefault(row["contender"], []).append(row["said"])
        own = summary(by_name.get("ours", []))
        for name, said in by_name.items():
            table.add_row(*map(str, case), name, *_cells(summary(said), own))
        table.add_section()
    return table


def summary(said: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over rounds and repeats; wall times from quiet moments where there are any."""
    said = list(said)
    times = [clock for answer in said for clock in answer.get("times", [])]
    if not times:
        return dict(said[0]) if said else {"failed": "not asked for"}
    quiet = [clock["wall"] for clock in times if clock["foreign"] <= FOREIGN]
    return {
        "cpu": machine.spread(clock["cpu"] for clock in times)["median"],
        "wall": machine.spread(quiet or [clock["wall"] for clock in times])["median"],
        "loud": not quiet,
        "extra_bytes": machine.spread(answer["extra_bytes"] for answer in said if "extra_bytes" in answer)["median"],
    }


def _cells(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    if "estimated_bytes" in theirs:
        return ["does not fit", "", f"~{theirs['estimated_bytes'] / 2**30:.0f}", "", "", ""]
    if "failed" in theirs:
        return ["failed: " + theirs["failed"][:40], "", "", "", "", ""]
    cells = [
        f"{theirs['cpu']:.2f}",
        f"{theirs['wall']:.2f}" + "~" * theirs["loud"],
        f"{theirs['extra_bytes'] / 2**30:.2f}",
    ]
    if "cpu" not in own:
        return [*cells, "", "", ""]
    return cells + [f"{own[key] / max(theirs[key], 1e-9):.2f}" for key in ("cpu", "wall", "extra_bytes")]


def main(arguments: list[str]) -> int:
    """Parent or child."""
    if arguments[:1] == ["--child"]:
        question = json.loads(arguments[1])
        child.answer(gated(question) if question.get("gate") else measured(question))
        return 0
    return benchmark(_parser().parse_args(arguments), Console(width=None if sys.stdout.isatty() else 140))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--objectives", nargs="+", choices=["fkl", "rkl", "jsd"], default=["fkl", "rkl", "jsd"])
    parser.add_argument("--precisions", nargs="+", choices=list(GATE), default=list(GATE))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=2, help="processes per contender and case, in turn")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per process")
    parser.add_argument("--seconds", type=float, default=40, help="no new call in a process after this many")
    parser.add_argument("--gate-rows", type=int, default=GATE_ROWS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "head.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
