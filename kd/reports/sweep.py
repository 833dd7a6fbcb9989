"""The tables of a sweep or of several runs, by name, and the files that a sweep ends with."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group

from kd.artifacts import write_atomically
from kd.reports.comparisons.augmentation import augmentation_grid
from kd.reports.comparisons.differences import difference_grid
from kd.reports.comparisons.gaps import gaps_grid
from kd.reports.comparisons.jobs import jobs_grid
from kd.reports.comparisons.pareto import pareto_grids
from kd.reports.comparisons.pivot import default_axes, many_skills, means_grid, pivot_grid
from kd.reports.comparisons.positions import positions_grids
from kd.reports.comparisons.ranks import ranks_grid
from kd.reports.comparisons.samples import samples_grids
from kd.reports.frame import Frame, frame_of
from kd.reports.grid import Cell, Grid
from kd.reports.paired import parsed
from kd.reports.papers.tables import paper_grids
from kd.reports.render import markdown, terminal
from kd.reports.runs import Job, problems, read_jobs
from kd.reports.transfer import transfer_grid


@dataclass(frozen=True)
class Choices:
    """What is shown of the runs.

    Attributes:
        paths: the folders as the user named them; none: the tables have no command.
        tables: names of TABLES; none: DEFAULT.
        pivot: rows and columns of the pivot, as `objective,skill`; none: the first settings that vary.
        metric: of pivot, differences and ranks; none: each skill's own.
        system: whose scores are shown, `after` being the trained student.
        baseline: as `objective=sft`; none: the run beside each (`compare`).
        correction: of p-values, a name of `kd.reports.corrections`.
        samples: answers that are shown of each arm.
        paper: a folder of `experiments/`; the table `paper` shows its published numbers beside ours.
    """

    paths: Sequence[str] = ()
    tables: Sequence[str] = ()
    pivot: str | None = None
    metric: str | None = None
    system: str = "after"
    baseline: str | None = None
    correction: str = "holm"
    samples: int = 3
    paper: str | None = None

    def command(self, table: str) -> str | None:
        """The command that prints one table."""
        if not self.paths:
            return None
        words = ["python", "-m", "kd.reports", *self.paths, "--tables", table]
        for name in USES[table]:
            if getattr(self, name) != getattr(Choices, name):
                words += [f"--{name}", str(getattr(self, name))]
        return shlex.join(words)


def _pivot(frame: Frame, choices: Choices) -> list[Grid]:
    if choices.pivot is not None and choices.pivot.count(",") != 1:
        raise ValueError(f"--pivot {choices.pivot}: name two settings, as in --pivot objective,skill")
    axes = tuple(choices.pivot.split(",")) if choices.pivot else default_axes(frame)
    if axes is None:
        return []
    facts = {"metric": choices.metric, "system": choices.system, "correction": choices.correction}
    return _some(pivot_grid(frame, *axes, **facts))  # type: ignore[arg-type]


def _differences(frame: Frame, choices: Choices) -> list[Grid]:
    baseline = None if choices.baseline is None else parsed(choices.baseline)
    grid = difference_grid(frame, baseline, metric=choices.metric, system=choices.system, correction=choices.correction)
    return [grid] if grid else []


def _paper(frame: Frame, choices: Choices) -> list[Grid]:
    if choices.paper is None:
        return []
    return paper_grids(frame, choices.paper, metric=choices.metric, correction=choices.correction)


def _some(grid: Grid | None) -> list[Grid]:
    return [grid] if grid else []


def _tidy(frame: Frame, choices: Choices) -> list[Grid]:
    table = frame.tidy()
    numbers = [name in ("value", "n", "low", "high") for name in table.columns]
    rows = [
        [_number(cell) if numeric else str(cell) for numeric, cell in zip(numbers, row, strict=True)]
        for row in table.itertuples(index=False)
    ]
    return [Grid("Scores", list(table.columns), rows, labels=len(table.columns) - 4)]


def _number(value: float | int | None) -> Cell:
    return Cell.number(None if value is None or value != value else value)


TABLES: dict[str, Callable[[Frame, Choices], list[Grid]]] = {
    "runs": lambda frame, _: [jobs_grid(frame.jobs, seeds=any(len(arm.runs) > 1 for arm in frame.arms))],
    "means": lambda frame, choices: _some(means_grid(frame)),
    "pivot": _pivot,
    "differences": _differences,
    "ranks": lambda frame, choices: _some(ranks_grid(frame, choices.metric, choices.system)),
    "pareto": lambda frame, choices: pareto_grids(frame, choices.metric),
    "gaps": lambda frame, choices: _some(gaps_grid(frame, choices.metric)),
    "transfer": lambda frame, choices: _some(transfer_grid(frame.jobs)),
    "augmentation": lambda frame, choices: _some(augmentation_grid(frame)),
    "positions": lambda frame, choices: positions_grids(frame, choices.metric, choices.system),
    "samples": lambda frame, choices: samples_grids(frame, choices.samples),
    "tidy": _tidy,
    "paper": _paper,
}
USES: dict[str, Sequence[str]] = {  # the choices that a table depends on
    **dict.fromkeys(TABLES, ()),
    **{"pivot": ("pivot", "metric", "system", "correction"), "pareto": ("metric",), "gaps": ("metric",)},
    **{"differences": ("baseline", "metric", "system", "correction"), "ranks": ("metric", "system")},
    **{"samples": ("samples",), "paper": ("paper", "metric", "correction"), "positions": ("metric", "system")},
}
NEEDS = {
    "means": "needs runs that differ in their seed alone",
    "pivot": "needs runs that differ in two settings beside the seed, and a score",
    "differences": "needs a baseline with a seed in common: the run beside (compare=sft), or --baseline KEY=VALUE",
    "ranks": "needs two arms that were run on the same two skills or more",
    "pareto": "needs two arms on one skill",
    "gaps": "needs runs with a teacher that is better than the student before",
    "transfer": "needs runs on two skills that were evaluated on one another (evaluation.skills)",
    "augmentation": "needs a run with a stage of augmentation",
    "positions": "needs runs with positions.csv, which measured the system on references",
    "samples": "needs runs that answered prompts",
    "paper": "needs --paper NAME, a folder of experiments/",
}
DEFAULT = ("runs", "means", "pivot", "differences", "transfer", "paper")


def tables_of(frame: Frame, choices: Choices) -> list[Grid]:
    """The chosen tables, each with the command that prints it; what could not be read is named under the last one.

    Raises ValueError for a name of no table, and a table that these runs cannot fill.
    """
    if unknown := [name for name in choices.tables if name not in TABLES]:
        raise ValueError(f"--tables {','.join(unknown)}: there are {', '.join(TABLES)}")
    means = any(len(arm.runs) > 1 for arm in frame.arms)
    asked = {"pivot": choices.pivot, "differences": choices.baseline}
    grids: list[Grid] = []
    unmade = []
    for name in choices.tables or DEFAULT:
        if name == "pivot" and not (choices.tables or choices.pivot or means or many_skills(frame)):
            continue  # of one seed each on few skills, the table of runs has it all
        try:
            found = TABLES[name](frame, choices)
        except ValueError as error:
            if name != "paper" or choices.tables:
                raise
            found, unmade = [], [f"No table of {choices.paper}: {error}."]  # the other tables are shown
        if not found and (choices.tables or asked.get(name)):
            raise ValueError(f"--tables {name} {NEEDS[name]}")
        grids += [replace(grid, command=choices.command(name)) for grid in found]
    last = grids[-1]
    return [*grids[:-1], replace(last, notes=[*last.notes, *unmade, *problems(frame.jobs)])]


def grids_of(jobs: Sequence[Job]) -> list[Grid]:
    """The tables of jobs that were read."""
    return tables_of(frame_of(jobs), Choices())


def sweep_grids(path: str | PathLike[str], choices: Choices | None = None) -> list[Grid]:
    """The tables of a sweep folder, or of the runs that `path` stands for."""
    return tables_of(frame_of(read_jobs(path)), choices or Choices())


def sweep_table(path: str | PathLike[str], width: int, paper: str | None = None) -> Group:
    """The tables of a sweep folder for a terminal of `width` characters; `paper`: with the published numbers."""
    grids = sweep_grids(path, Choices(paths=[near(Path(path))], paper=paper))
    return Group(*(terminal(grid, width) for grid in grids))


def near(path: Path) -> str:
    """The path from the working folder, where it lies in that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def write_sweep(sweep: Path, paper: str | None = None) -> None:
    """Write sweep.csv (numbers) and sweep.md (the tables) into the sweep folder, each atomically."""
    jobs = read_jobs(sweep)
    grids = tables_of(frame_of(jobs), Choices(paths=[near(sweep)], paper=paper))
    write_atomically(sweep / "sweep.csv", sweep_frame(jobs).to_csv(index=False))
    write_atomically(sweep / "sweep.md", "\n".join(map(markdown, grids)))


def sweep_frame(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row per job; columns are named as in results.json, of the distilled student (`after`)."""
    return pd.DataFrame([_flat(job) for job in jobs], dtype=object)  # else a failed job makes floats of counts


def _flat(job: Job) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job.label, **job.overrides, "status": job.status, "reason": job.reason or job.problem}
    row |= {"seconds": job.seconds, "run": job.folder.name if job.folder else None}
    if job.results is None:
        return row
    row["seed"] = job.results["seed"]
    for name, estimate in _estimates(job.results):
        row |= {f"{name}.after.{key}": value for key, value in estimate.items()}
    for skill, gaps in job.results["gap_closed"].items():
        row |= {f"gap_closed.{skill}.{metric}": gap for metric, gap in gaps.items()}
    for page in ("budget", "digests"):
        row |= {f"{page}.{key}": value for key, value in job.results[page].items()}
    for split, counts in (job.results.get("records") or {}).items():
        row |= {f"records.{split}.{key}": value for key, value in counts.items()}
    return row | {"omits": "; ".join(job.results.get("omits", ()))}


def _estimates(results: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for skill, metrics in results["scores"].items():
        for metric, systems in metrics.items():
            yield f"scores.{skill}.{metric}", systems["after"]
    for metric, systems in (results["agreement"] or {}).items():
        yield f"agreement.{metric}", systems["after"]
