"""One script for the day when a GPU is at hand: is it right there, and how near is it to what the machine can do?

    pip install -c constraints.txt torch==2.13.0 -e '.[dev]'       the wheel for the driver's CUDA
    pip install -c constraints.txt torch==2.13.0 trl==1.16.0       peers; without them their rows are skipped
    pip install --no-deps liger-kernel==0.8.5
    python -m venv .vllm && .vllm/bin/pip install vllm==0.32.0     apart, for it brings the torch that it was built for

    python -m benchmarks.gpu                              at most 8 minutes on an H100 or H200
    python -m benchmarks.gpu --sections agreement head    two sections
    python -m benchmarks.gpu --report gpu_results         the table again, of rows that were measured before
    python -m benchmarks.gpu --device cpu --tiny          seconds a section: does everything run?

Each section is a process with a time budget of its own. A section that fails is reported with its traceback and the
others go on; what fails or is not installed inside of one is a row that gives the reason. Rows are appended to
`rows.jsonl` in the output folder as they come, so that a kill loses none, and a section's output is beside them.
`agreement` compares with float64 on the CPU; the exit code is 1 where a gate, a section, or a row of ours failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import agreement, machine, sections, vllm_engine
from benchmarks.child import QUIET, ROOT
from benchmarks.scene import Row, Scene, Section

SECTIONS: dict[str, Section] = {**sections.SECTIONS, "agreement": agreement.rows, "vllm": vllm_engine.rows}
SECONDS = {
    "limits": 30,
    "agreement": 90,
    "head": 70,
    "step": 90,
    "decode": 50,
    "memory": 40,
    "vllm": 100,
}  # in this order
TOTAL = 480
WIDTH = 80


# ---- all of them -----------------------------------------------------------------------------------------------------


def benchmark(options: argparse.Namespace) -> int:
    """The sections in turn, then the table; 1 if a gate or a section failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    scene = Scene(options.out, options.device, options.tiny)
    scene.path.unlink(missing_ok=True)
    scene.write({"section": "machine", "case": "", **described(options.device)})
    ends = time.monotonic() + options.seconds
    for name in options.sections:
        left = ends - time.monotonic()
        if options.device == "cuda":  # a CPU is no machine for these limits
            left = min(left, SECONDS.get(name, TOTAL))
        if left < 1:
            scene.write({"section": name, "case": "", "skipped": f"no time left of {options.seconds:.0f} s"})
        elif options.here:
            scene.until(left).measure(name, SECTIONS[name])
        else:
            _in_a_process(name, scene, left, options)
    return report(options.out)


def described(device: str) -> dict[str, Any]:
    """Versions, processor, and the device's name."""
    found = machine.described()
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def _in_a_process(name: str, scene: Scene, seconds: float, options: argparse.Namespace) -> None:
    """One section with a limit on its time, after which its processes are killed; it writes its rows itself."""
    python = str(options.vllm_python) if name == "vllm" and options.vllm_python else sys.executable
    command = [python, "-m", "benchmarks.section", name, str(options.out), options.device, str(seconds)]
    log = options.out / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *(["--tiny"] if options.tiny else [])],
            cwd=ROOT,
            env={**os.environ, **QUIET},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # killed with all that it started
        )
        try:
            code = process.wait(seconds)
            reason = f"exit code {code}"
        except subprocess.TimeoutExpired:
            code, reason = -1, f"killed after its {seconds:.0f} s"
        finally:
            _kill(process)
    if code:
        scene.write({"section": name, "case": "", "failed": reason, "traceback": _tail(log)})


def _kill(process: subprocess.Popen) -> None:
    """End the process and those that it started, which share its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


# ---- the table -------------------------------------------------------------------------------------------------------


def report(folder: Path) -> int:
    """Print the rows of a folder as one table of 80 columns, and tracebacks below; 1 if anything failed."""
    rows = Scene(folder, "cpu").rows()
    console = Console(width=WIDTH, highlight=False)
    console.print(_heading(rows))
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    for column, width in (("section", 11), ("case", 18), ("by", 17)):
        table.add_column(column, width=width, no_wrap=True)
    for column, width in (("figure", 17), ("limit", 6), ("x", 5), ("GiB", 6)):
        table.add_column(column, width=width, no_wrap=True, justify="right")
    before = None
    for row in (row for row in rows if row["section"] != "machine"):
        table.add_row("" if row["section"] == before else row["section"], *cells(row, rows))
        before = row["section"]
    console.print(table)
    for reason, of in _reasons(rows).items():
        console.print(f"{reason}: {', '.join(of)}", markup=False)
    for row in (row for row in rows if "traceback" in row):
        console.print(f"\n{row['section']} {row['case']} {row.get('by', '')}\n{row['traceback']}", markup=False)
    return 1 if any(row.get("passed") is False or ("failed" in row and _ours(row)) for row in rows) else 0


def _reasons(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The sections and contenders without a figure, or outside a gate, by the reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        reason = row.get("failed") or row.get("skipped") or ("outside its gate" if row.get("passed") is False else None)
        named = f"{row['section']} {row.get('by', '')}".strip()
        if reason and named not in found.setdefault(reason, []):
            found[reason].append(named)
    return found


def _ours(row: Row) -> bool:
    """Return whether a row is of this project's code, or of a whole section."""
    return row.get("by", "") == "" or row["by"].startswith("ours")


def cells(row: Row, rows: Sequence[Row]) -> Sequence[str]:
    """Case, contender, figure, share of the machine's limit, times the time of ours, and GiB."""
    case, by = row["case"], row.get("by", "")
    if "figure" not in row:
        return case, by, "[red]failed[/]" if "failed" in row else "skipped", "", "", ""
    mark = "" if "passed" not in row else "ok " if row["passed"] else "[red]FAIL[/] "
    share = "" if row.get("share") is None else f"{row['share']:.0%}"
    gib = f"{row['gib']:.1f}" if "gib" in row else ""
    return case, by, f"{mark}{row['figure']:.3g} {row['unit']}", share, _times(row, rows), gib


def _times(row: Row, rows: Sequence[Row]) -> str:
    """The time of a peer over that of ours in the same case."""
    same = [
        one for one in rows if (one["section"], one["case"], one.get("by")) == (row["section"], row["case"], "ours")
    ]
    if not same or "seconds" not in row or "seconds" not in same[0] or row is same[0]:
        return ""
    return f"{row['seconds'] / same[0]['seconds']:.2f}"


def _heading(rows: Sequence[Row]) -> str:
    known: Mapping[str, Any] = next((row for row in rows if row["section"] == "machine"), {})
    names = ("gpu", "gpu_gib", "processor", "python", "torch", "cuda", "transformers", "trl", "liger-kernel")
    return ", ".join(f"{name} {known[name]}" for name in names if known.get(name))


def main(arguments: Sequence[str]) -> int:
    """Measure, or print what was measured."""
    options = _parser().parse_args(arguments)
    if options.report:
        return report(options.report)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA GPU here; take --device cpu --tiny, which runs everything that a CPU can")
        return 2
    return benchmark(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECONDS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few hundred ids, to see that it runs")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all sections together")
    parser.add_argument("--here", action="store_true", help="sections in this process, which a crash would end")
    parser.add_argument("--vllm-python", type=Path, help="the python of an environment that has vLLM", default=_vllm())
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of rows and outputs")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="print the table of rows measured before")
    return parser


def _vllm() -> Path | None:
    found = ROOT / ".vllm" / "bin" / "python"
    return found if found.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
