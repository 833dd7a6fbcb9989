"""`python -m kd.reports PATH... [--out DIR]`: the tables of runs, sweeps or an outputs folder.

Exit code 0; 1 where there is nothing to read, or something could not be read: the tables of the rest are shown, and
what could not be read is named under them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kd.artifacts import write_atomically
from kd.errors import in_one_sentence
from kd.reports.grid import Grid, console
from kd.reports.runs import Job, is_run, problems, read_jobs, tidy
from kd.reports.sweep import grids_of
from kd.reports.table import run_grid


def grids(path: Path, jobs: Sequence[Job]) -> list[Grid]:
    """A finished run's own table; else one row per job or run."""
    if is_run(path) and (results := jobs[0].results):
        grid = run_grid(results, title=path.resolve().name)
        return [replace(grid, notes=[*grid.notes, *problems(jobs)])]
    return grids_of(jobs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; write tables.md and the tidy runs.csv only with `--out`."""
    parser = argparse.ArgumentParser(
        prog="python -m kd.reports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="run, sweep or outputs folder")
    parser.add_argument("--out", type=Path, help="also write tables.md and runs.csv into this folder")
    options = parser.parse_args(arguments)
    with in_one_sentence():
        found = {path: read_jobs(path) for path in options.paths}
        jobs = [job for of_path in found.values() for job in of_path]
        tables = [grid for path, of_path in found.items() for grid in grids(path, of_path)]
        for grid in tables:
            console().print(grid.rich())
        if options.out is not None:
            write_atomically(options.out / "tables.md", "\n".join(grid.markdown() for grid in tables))
            write_atomically(options.out / "runs.csv", tidy(jobs).to_csv(index=False))
    sys.exit(1 if problems(jobs) else 0)


if __name__ == "__main__":
    main()
