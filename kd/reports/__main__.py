"""`python -m kd.reports PATH...`: tables of runs, sweeps or an outputs folder, from their files alone.

A finished run alone is shown with all its systems. Several are compared: each run, means over seeds, a pivot, paired
differences to the run beside each, transfer between skills; --tables chooses among runs, means, pivot, differences,
ranks, pareto, gaps, transfer, augmentation, positions, samples, tidy (the scores, one a row) and paper (--paper
NAME: the published numbers of experiments/NAME beside ours). --page writes all of it into one HTML file;
`python -m kd.reports serve PATH...` shows that page while runs go on.

`python -m kd.reports wandb PATH…` makes the dashboard of Weights & Biases (kd.reports.wandb.command; --help after it).

Exit code 0; 1 where there is nothing to read, or something could not be read: the tables of the rest are shown, and
what could not be read is named under them.
"""

import argparse
import importlib.util
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kd.artifacts import write_atomically
from kd.errors import in_one_sentence
from kd.reports.corrections import CORRECTIONS
from kd.reports.frame import Frame, frame_of, identity
from kd.reports.grid import Grid, console
from kd.reports.render import markdown, print_grid, rendered
from kd.reports.robustness import robustness_grid
from kd.reports.runs import Job, is_run, problems, read_jobs
from kd.reports.sweep import TABLES, Choices, tables_of
from kd.reports.table import run_grid

FORMATS = ("terminal", "markdown", "latex", "csv", "json")


def grids(found: Mapping[str, Sequence[Job]], choices: Choices) -> list[Grid]:
    """The tables of all runs together, and a finished run's own where it is named alone or beside other folders.

    found: the jobs by path, as these were named.
    """
    runs = [path for path, jobs in found.items() if is_run(Path(path)) and jobs[0].results is not None]
    if choices.tables or (len(runs) == len(found) and len(runs) > 1):
        runs = []
    together = replace(choices, paths=[path for path in found if path not in runs])
    jobs = list({identity(job): job for path in together.paths for job in found[path]}.values())
    own = [grid for path in runs for grid in _own(path, found[path][0])]
    return [*(tables_of(frame_of(jobs), together) if jobs else []), *own]


def _own(path: str, job: Job) -> list[Grid]:
    """The table of a finished run, and that of its variants where it has any."""
    grid = run_grid(job.results or {}, Path(path).resolve().name, job.config)
    command = shlex.join(["python", "-m", "kd.reports", path])
    variants = robustness_grid(job.results or {})
    return [replace(grid, notes=[*grid.notes, *problems([job])], command=command), *([variants] if variants else [])]


def _draw(frame: Frame, choices: Choices, folder: Path, formats: Sequence[str]) -> None:
    """Draw all figures that the runs have something for, and print their files."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--figures needs matplotlib, which is not installed; pip install -e '.[reports]'")
    from kd.reports.figures import FORMATS as KNOWN
    from kd.reports.figures import write_figures

    if unknown := [name for name in formats if name not in KNOWN]:
        raise ValueError(f"--figure-formats {','.join(formats)}: no format {unknown[0]!r}; take {', '.join(KNOWN)}")
    files = write_figures(frame, choices, folder, formats)
    names = list(dict.fromkeys(path.stem for path in files))
    found = f"{', '.join(names)} ({', '.join(formats)})" if names else "none: the runs differ in too little"
    print(f"Figures in {folder}: {found}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    found = argparse.ArgumentParser(
        prog="python -m kd.reports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("paths", nargs="+", metavar="PATH", help="run, sweep or outputs folder")
    found.add_argument("--tables", default="", metavar="NAME,…", help=f"of {', '.join(TABLES)}")
    found.add_argument("--pivot", metavar="ROWS,COLUMNS", help="two settings, as objective,skill")
    of = "pivot, differences, ranks, pareto, gaps, positions"
    found.add_argument("--metric", help=f"of {of}; default: each skill's own, of positions all")
    found.add_argument("--system", default="after", help="whose scores: after (default), before, sft, teacher, floor")
    found.add_argument("--baseline", metavar="KEY=VALUE,…", help="settings of the arm that others are compared with")
    found.add_argument("--correction", choices=list(CORRECTIONS), default="holm", help="of p-values (default: holm)")
    found.add_argument("--samples", type=int, default=3, help="answers of each arm in --tables samples (default: 3)")
    found.add_argument("--paper", metavar="NAME", help="published numbers beside ours: a folder of experiments/")
    found.add_argument("--format", choices=FORMATS, default="terminal", help="csv alone has the tidy scores")
    found.add_argument("--out", type=Path, help="also write tables.md and the tidy runs.csv into this folder")
    found.add_argument("--page", type=Path, metavar="FILE", help="also write one HTML file, which needs no network")
    found.add_argument("--open", action="store_true", help="open the file of --page in the browser")
    found.add_argument("--figures", type=Path, metavar="FOLDER", help="also draw figures into this folder")
    found.add_argument("--figure-formats", default="png,svg,pdf", metavar="NAME,…", help="default: png,svg,pdf")
    return found


def _default_tables(options: argparse.Namespace) -> tuple[str, ...]:
    if options.paper is not None:
        return ("paper",)
    return ("tidy",) if options.format == "csv" else ()


def _write_page(choices: Choices, file: Path, *, open_it: bool) -> None:
    """Write the page, print its name, and open it in the browser where `--open` is given."""
    from kd.reports.page.document import write_page

    write_page(choices, file)
    print(f"Page: {file}", file=sys.stderr)
    if open_it:
        webbrowser.open(file.absolute().as_uri())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; write tables.md and runs.csv only with `--out`. `wandb PATH…` makes W&B's dashboard instead."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["wandb"]:
        from kd.reports.wandb.command import main as wandb

        sys.exit(wandb(words[1:]))
    if words[:1] == ["serve"]:
        from kd.reports.page.server import main as serve

        return serve(words[1:])
    options = parser().parse_args(words)
    names = tuple(filter(None, options.tables.split(","))) or _default_tables(options)
    same = ("paths", "pivot", "metric", "system", "baseline", "correction", "samples", "paper")
    choices = Choices(tables=names, **{name: getattr(options, name) for name in same})
    with in_one_sentence():
        found = {path: read_jobs(path) for path in options.paths}
        jobs = [job for of_path in found.values() for job in of_path]
        plain = options.format == "csv" and choices.tables == ("tidy",)
        tables = [] if plain else grids(found, choices)
        if plain:
            frame_of(jobs).tidy().to_csv(sys.stdout, index=False)
        elif options.format == "terminal":
            for grid in tables:
                print_grid(grid, console())
        else:
            sys.stdout.write(rendered(tables, options.format))
        if options.out is not None:
            pages = tables or grids(found, replace(choices, tables=()))
            write_atomically(options.out / "tables.md", "\n".join(map(markdown, pages)))
            write_atomically(options.out / "runs.csv", frame_of(jobs, beside=False).tidy().to_csv(index=False))
        if options.page is not None:
            _write_page(choices, options.page, open_it=options.open)
        if options.figures is not None:
            _draw(frame_of(jobs), choices, options.figures, options.figure_formats.split(","))
    sys.exit(1 if problems(jobs) else 0)


if __name__ == "__main__":
    main()
