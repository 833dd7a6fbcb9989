"""Writing alone: our `write` against the library's `generate`, sampling at temperature 1, with the same weights.

python -m benchmarks.decoding                              8 and 64 rows, fp32 and bf16
python -m benchmarks.decoding --rows 8 --precisions bf16 --rounds 1
python -m benchmarks.decoding --small                      seconds: does it run?
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import child, machine
from benchmarks.head import Rows, summary
from benchmarks.training import network, words

PROMPT = 64
FULL: dict[str, Any] = {"layers": 8, "size": {"vocab_size": 49152}, "new": 64}
SMALL: dict[str, Any] = {
    "layers": 2,
    "size": {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 96, "num_attention_heads": 9},
    "new": 4,
}


def prompts(case: Mapping[str, Any]) -> torch.Tensor:
    """Random ids, the same for all."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, case["size"]["vocab_size"], (case["rows"], PROMPT), generator=generator)
    return ids.to(case.get("device", "cpu"))


def ours(case: Mapping[str, Any], sample: bool = True) -> Callable[[], list[list[int]]]:
    """From float32 weights, under autocast for bf16, as in training: casting and packing them is counted each time."""
    from kd.generators.generation import write
    from kd.generators.sampling import Sampled
    from kd.models.language_model import LanguageModel

    inner = network(case["layers"], case["size"], seed=1, device=case.get("device", "cpu"))
    model = LanguageModel(inner, words(case["size"]["vocab_size"]))
    asked, choose = prompts(case).tolist(), Sampled(float(sample))

    def once() -> list[list[int]]:
        with _precision(case):
            groups = write([model], asked, max_new_tokens=case["new"], choose=choose, batch_size=case["rows"])
        return [list(response.ids) for (response,) in groups]

    return once


def library(case: Mapping[str, Any], sample: bool = True) -> Callable[[], list[list[int]]]:
    """`generate`; for bf16 with weights that were cast before, not counted. It keeps no log-probabilities."""
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    model = network(case["layers"], case["size"], seed=1, device=case.get("device", "cpu")).to(dtype).eval()
    asked = prompts(case)
    how: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {}

    @torch.no_grad()
    def once() -> list[list[int]]:
        written = model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=case["new"],
            eos_token_id=2,
            pad_token_id=0,
            **{"do_sample": False, **how},
        )
        return written[:, PROMPT:].tolist()

    return once


CONTENDERS = {"ours": ours, "library": library}


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
    """Clocks of `repeats` calls after one that is not counted."""
    from kd.kernels.allocation import keep_freed_memory

    keep_freed_memory()
    once = CONTENDERS[case["contender"]](case)
    child.forget_peak()
    resident, times = child.resident(), []
    once()
    for _ in range(case["repeats"]):
        with machine.Clock() as clock:
            written = once()
        times.append(clock.row())
    return {"times": times, "extra_bytes": child.peak() - resident, "tokens": sum(map(len, written))}


def same_text(case: Mapping[str, Any]) -> dict[str, Any]:
    """Share of greedy responses in fp32 that are the same, whole."""
    case = {**case, "precision": "fp32", "rows": 8}
    own, theirs = (contender(case, sample=False)() for contender in (ours, library))
    return {"same": sum(a == b for a, b in zip(own, theirs, strict=True)) / len(own)}


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """All cases; 1 if greedy texts differ, and then nothing is timed."""
    rows, shape = Rows(options.out, machine.described()), SMALL if options.small else FULL
    console.print(rows.header)
    gate = child.ask(__spec__.name, {**shape, "gate": True}, options.threads)
    rows.add({"kind": "gate"}, gate)
    console.print(f"greedy texts equal to the library's: {gate.get('same', gate)}")
    if gate.get("same") != 1:
        return 1
    cases = list(itertools.product(options.precisions, options.rows))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(cases) * options.rounds * len(CONTENDERS))
        for (precision, n), _, name in itertools.product(cases, range(options.rounds), CONTENDERS):
            bar.update(task, description=f"{precision} {n} {name}")
            case = {"precision": precision, "rows": n, "contender": name, "repeats": options.repeats, **shape}
            rows.add({**case, "kind": "time"}, child.ask(__spec__.name, case, options.threads))
            bar.advance(task)
    console.print(report(rows))
    return 0


def report(rows: Rows) -> Table:
    """Medians, per written token, and ours as a fraction of the library's."""
    table = Table(title="a call: CPU s, wall s (~ others used the machine), GiB beyond the weights; ours / library's")
    for column in ("dtype", "rows", "by", "CPU s", "wall s", "GiB", "ms a token (CPU)", "CPU", "wall", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    timed = rows.of("time")
    for precision, n in dict.fromkeys((row["precision"], row["rows"]) for row in timed):
        chosen = [row for row in timed if (row["precision"], row["rows"]) == (precision, n)]
        said = {name: [row["said"] for row in chosen if row["contender"] == name] for name in CONTENDERS}
        own, theirs = (summary(answers) for answers in said.values())
        for name, one in (("ours", own), ("library", theirs)):
            table.add_row(precision, str(n), name, *_cells(one, said[name], own, theirs if name == "ours" else None))
        table.add_section()
    return table


def _cells(one: Mapping[str, Any], said: list, own: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> list[str]:
    if "cpu" not in one:
        return [str(one)[:60], *[""] * 6]
    cells = [f"{one['cpu']:.2f}", f"{one['wall']:.2f}" + "~" * one["loud"], f"{one['extra_bytes'] / 2**30:.2f}"]
    cells.append(f"{1000 * one['cpu'] / said[0]['tokens']:.2f}")
    if theirs is None or "cpu" not in theirs:
        return [*cells, "", "", ""]
    return cells + [f"{own[key] / max(theirs[key], 1e-9):.2f}" for key in ("cpu", "wall", "extra_bytes")]


def _precision(case: Mapping[str, Any]) -> AbstractContextManager:
    device = case.get("device", "cpu")
    return torch.autocast(device, torch.bfloat16) if case["precision"] == "bf16" else nullcontext()


def main(arguments: list[str]) -> int:
    """Parent or child."""
    if arguments[:1] == ["--child"]:
        case = json.loads(arguments[1])
        child.answer(same_text(case) if case.get("gate") else measured(case))
        return 0
    return benchmark(_parser().parse_args(arguments), Console(width=None if sys.stdout.isatty() else 140))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=2, help="processes per contender and case, in turn")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls per process")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
