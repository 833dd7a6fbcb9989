"""Runs on several skills, each evaluated on the others: what training on one does to another (forgetting, transfer)."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kd.metrics.table import of_results
from kd.reports.grid import Grid, number
from kd.reports.runs import Job
from kd.reports.table import of_answers

Cells = dict[tuple[str, str], list[tuple[float, float]]]  # (trained on, evaluated on) -> (before, after) of each run


def transfer_grid(jobs: Sequence[Job]) -> Grid | None:
    """Rows: the skill of a run. Columns: the evaluated skills, by the first metric of their answers. A cell has the
    student's mean over runs after training and, in brackets, less that before.

    None where fewer than two skills were trained on, or none of them was evaluated by runs on another.
    """
    cells, titles = _cells(jobs)
    trained = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    shared = [column for column in columns if sum((row, column) in cells for row in trained) > 1]
    if len(trained) < 2 or not shared:
        return None
    header = ["trained on", *(f"{column}\n{titles[column]}" for column in shared)]
    rows = [[row, *(_cell(cells.get((row, column), [])) for column in shared)] for row in trained]
    notes = [
        "Each column is a skill that runs on several skills were evaluated on; in brackets, the change by training."
    ]
    return Grid("Transfer and forgetting", header, rows, notes)


def _cells(jobs: Sequence[Job]) -> tuple[Cells, dict[str, str]]:
    cells: Cells = {}
    titles: dict[str, str] = {}
    for results in (job.results for job in jobs if job.results is not None):
        own = next(iter(results["scores"]), None)  # a run's own skill comes first
        for skill, metrics in results["scores"].items():
            name = _headline(results, metrics)
            if own is None or name is None:
                continue
            systems = metrics[name]
            if systems.get("before") is not None and systems.get("after") is not None:
                titles.setdefault(skill, of_results(results, name).title)
                pair = (systems["before"]["value"], systems["after"]["value"])
                cells.setdefault((own, skill), []).append(pair)
    return cells, titles


def _headline(results: Mapping[str, Any], metrics: Mapping[str, Any]) -> str | None:
    """The first metric of answers; where nothing was answered, the first of all."""
    answered = [name for name in metrics if of_answers(results, name)]
    return next(iter([*answered, *metrics]), None)


def _cell(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return "–"
    change = fmean(after - before for before, after in pairs)
    sign = "+" if change >= 0 else "−"
    return f"{number(fmean(after for _, after in pairs))} ({sign}{number(abs(change))})"
