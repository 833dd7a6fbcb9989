"""Runs on several skills, each evaluated on the others: what training on one does to another (forgetting, transfer)."""

from collections.abc import Sequence
from statistics import fmean

from kd.metrics.table import of_results
from kd.reports.grid import Grid, number
from kd.reports.runs import Job
from kd.reports.settings import TRAINED_ON, settings_of
from kd.reports.table import headline

Row = tuple[str, ...]  # the skill of a run, and its other settings
Cells = dict[tuple[Row, str], list[tuple[float, float]]]  # (row, evaluated on) -> (before, after) of each run


def transfer_grid(jobs: Sequence[Job]) -> Grid | None:
    """Rows: the skill of a run, and the other settings in which runs differ. Columns: the evaluated skills, by the
    first metric of their answers. A cell has the student's mean over seeds after training and, in brackets, less that
    before.

    None where fewer than two skills were trained on, or none of them was evaluated by runs on another. Rows without a
    value in any column are left out, and so are the parts of a mixture, on which it was trained.
    """
    finished = [job for job in jobs if job.results is not None]
    settings = settings_of(finished)
    labels = [name for name in settings.columns if name != TRAINED_ON]
    cells, titles = _cells(finished, [tuple(values[name] for name in labels) for values in settings.values])
    trained = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    shared = [column for column in columns if len({row[0] for row, other in cells if other == column}) > 1]
    if not shared:
        return None
    trained = [row for row in trained if any((row, column) in cells for column in shared)]
    header = [TRAINED_ON, *labels, *(f"{column}\n{titles[column]}" for column in shared)]
    rows = [[*row, *(_cell(cells.get((row, column), [])) for column in shared)] for row in trained]
    notes = [
        "Each column is a skill that runs on several skills were evaluated on; in brackets, the change by training."
    ]
    return Grid("Transfer and forgetting", header, rows, notes, labels=1 + len(labels))


def _cells(jobs: Sequence[Job], settings: Sequence[Row]) -> tuple[Cells, dict[str, str]]:
    cells: Cells = {}
    titles: dict[str, str] = {}
    for job, others in zip(jobs, settings, strict=True):
        results = job.results or {"scores": {}}
        own = next(iter(results["scores"]), None)  # a run's own skill comes first
        elsewhere = not job.config or bool((job.config.get("evaluation") or {}).get("skills"))
        for skill, metrics in results["scores"].items() if elsewhere else list(results["scores"].items())[:1]:
            name = headline(results, metrics)
            if own is None or name is None:
                continue
            before, after = ((metrics[name].get(system) or {}).get("value") for system in ("before", "after"))
            if before is not None and after is not None:
                titles.setdefault(skill, of_results(results, name).title)
                cells.setdefault(((own, *others), skill), []).append((before, after))
    return cells, titles


def _cell(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return "–"
    change = fmean(after - before for before, after in pairs)
    sign = "+" if change >= 0 else "−"
    return f"{number(fmean(after for _, after in pairs))} ({sign}{number(abs(change))})"
