"""Diagnoses an experiment before it is run: `python -m kd.doctor -n 2 objective=rkl skill=spell_backward`.

Prints a few records token by token, checks tokenizers, data and the loss path, and estimates peak memory. Nothing is
trained or prepared for it. Exit code 1 if a check failed, else 0.

With --gpu NAME, or --dry-run, every job of a grid is composed and checked, and its needs (memory by phase, hours) are
estimated from the architectures of its models alone: no weights, data, hub or GPU (docs/dry_run.md, docs/scale.md).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from kd.doctor.gpus import gpu
from kd.doctor.measure import STEPS, measured, resident
from kd.doctor.memory import mib, peak
from kd.doctor.peaks import PHASES, Phases, check_devices, check_room, phases
from kd.doctor.room import available
from kd.doctor.shift import shift_self_test
from kd.doctor.subject import admit, composed
from kd.doctor.tokens import record_tables
from kd.doctor.workload import Assumed
from kd.errors import explained, fault, in_one_sentence
from kd.experiment.checks import Subject, check_data, check_ends, has_end, licences, special_tokens, teachers
from kd.experiment.findings import Finding, findings_table, worst
from kd.kernels.allocation import keep_freed_memory
from kd.reports.grid import console as console_of_reports
from kd.reports.render import print_grid

SELF_TEST = 2  # records
GPU = "h100-80"  # of a dry run that names none


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m kd.doctor`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kd.doctor", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for kd: objective=rkl skill=spell_backward")
    parser.add_argument("-n", type=int, default=2, help="number of records to print (default 2)")
    parser.add_argument("--measure", action="store_true", help="run two real steps and print their peak memory")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    parser.add_argument("--dry-run", action="store_true", help="check all jobs of a grid, and estimate their needs")
    parser.add_argument("--gpu", help="a dry run on this GPU: a100-80, h100-80 (default of --dry-run) and others")
    parser.add_argument(
        "--utilisation", type=float, default=0.4, help="share of its peak that is reached (default 0.4)"
    )
    parser.add_argument("--length", type=int, help="of a dry run: tokens of a record; default: data.max_length")
    options = parser.parse_intermixed_args(arguments)
    disable_progress_bar()
    if options.dry_run or options.gpu is not None:
        return estimated(options)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        with composed(options.overrides, more=options.config_dir) as cfg:
            return diagnose(cfg, console, options.n, options.measure)
    except Exception as error:
        console.print(findings_table([Finding("FAIL", "config", explained(error) or fault(error))]))
        return 1


def estimated(options: argparse.Namespace) -> int:
    """Print the tables of a dry run. Raises SystemExit with one sentence for a grid that cannot be run."""
    from kd.doctor.dry_run import dry_run

    with in_one_sentence():
        if not 0 < options.utilisation <= 1:
            raise ValueError(f"--utilisation {options.utilisation}: it is a share above 0, and 1 at most")
        if options.length is not None and options.length < 2:
            raise ValueError(f"--length {options.length}: a record has 2 tokens at least")
        assumed = Assumed(gpu(options.gpu or GPU), options.utilisation, options.length)
        for grid in dry_run(options.overrides, assumed, options.config_dir):
            print_grid(grid, console_of_reports())
    return 0


def diagnose(cfg: DictConfig, console: Console, shown: int, measure: bool) -> int:
    """Print everything; 1 if a check failed, else 0."""
    if measure and cfg.trainer.accelerator == "cpu":
        keep_freed_memory()  # as a run does
    room, before = available(cfg), resident()
    subject = admit(cfg)
    findings = [*subject.findings, *examined(subject, console, shown)]
    console.print(special_table(subject))
    if can_end(subject):
        found = phases(subject)
        findings += [*check_devices(cfg), check_room(found, room, subject)]
        runs = measure and worst(findings) != "FAIL"
        console.print(memory_table(found, room, measured(subject, before) if runs else None))
    console.print(findings_table(findings))
    return 1 if worst(findings) == "FAIL" else 0


def examined(subject: Subject, console: Console, shown: int) -> Iterator[Finding]:
    """Print token tables; yield the findings, up to one that makes the next check impossible."""
    parts = subject.parts
    yield licences(subject)
    yield check_ends(subject)
    if not can_end(subject):
        return
    for record in parts.data.train[:shown]:
        for table in record_tables(parts.encoder, record):
            console.print(table)
    findings = list(check_data(subject))
    yield from findings
    readable = [record for record in parts.data.train if parts.encoder.encode(record)][:SELF_TEST]
    if readable and worst(f for f in findings if f.check.startswith(("vocabulary", "positions"))) != "FAIL":
        yield shift_self_test(parts, readable)


def can_end(subject: Subject) -> bool:
    """Return whether all tokenizers have an end token; without one, no sequence can be made."""
    models = [subject.parts.module.student, *teachers(subject.parts).values()]
    return all(map(has_end, models))


def special_table(subject: Subject) -> Table:
    """The special ids of student and teacher side by side; rows that differ are yellow."""
    models = {"student": subject.parts.module.student, **teachers(subject.parts)}
    table = Table("", *models, title=Text("special tokens", "bold"), title_justify="left", box=SIMPLE_HEAD)
    for name, values in special_tokens(models).items():
        table.add_row(Text(name), *map(Text, values), style="yellow" if len(set(values)) > 1 else None)
    return table


def memory_table(found: Phases, room: int, peak_measured: int | None) -> Table:
    """The estimate of training part by part, the other phases, and the memory available."""
    items = found["train"]
    table = Table("", "", "how", title=Text("peak memory, estimated", "bold"), title_justify="left", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for item in items:
        if item.held:
            table.add_row(Text(item.name), mib(item.size), Text(item.how))
    table.add_row("estimated peak", mib(peak(items)), "", style="bold")
    if peak_measured is not None:
        table.add_row("measured peak", mib(peak_measured), f"of {STEPS} real steps, all on one rank", style="bold")
    for name, how in PHASES.items():
        if name in found:
            table.add_row(Text(f"phase {name}"), mib(peak(found[name])), Text(how))
    table.add_row("available", mib(room), "before anything was loaded")
    for item in items:
        if not item.held:
            table.add_row(Text(item.name), mib(item.size), Text(f"{item.how}, on disk"))
    return table


if __name__ == "__main__":
    sys.exit(main())
