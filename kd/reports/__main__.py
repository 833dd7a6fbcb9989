"""`python -m kd.reports PATH... [--out DIR]`: the tables of runs, sweeps or an outputs folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kd.reports.grid import Grid, console
from kd.reports.runs import is_run, read_jobs, read_runs
from kd.reports.sweep import sweep_grids
from kd.reports.table import run_grid
from kd.run_folder import write_atomically


def grids(path: Path) -> list[Grid]:
    """A finished run's own table; else one row per job or run."""
    if is_run(path) and (results := read_jobs(path)[0].results):
        return [run_grid(results, title=path.resolve().name)]
    return sweep_grids(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; write tables.md and the tidy runs.csv only when told where."""
    parser = argparse.ArgumentParser(prog="python -m kd.reports", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="run, sweep or outputs folder")
    parser.add_argument("--out", type=Path, help="also write tables.md and runs.csv into this folder")
    options = parser.parse_args(arguments)
    try:
        tables = [grid for path in options.paths for grid in grids(path)]
        for grid in tables:
            console().print(grid.rich())
        if options.out is not None:
            write_atomically(options.out / "tables.md", "\n".join(grid.markdown() for grid in tables))
            write_atomically(options.out / "runs.csv", read_runs(options.paths).to_csv(index=False))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
