"""Divergence from the teacher, agreement and entropy by the position of a token in its response."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kd.intervals import over_seeds
from kd.metrics.table import METRICS
from kd.reports.comparisons.pivot import SEED_INTERVALS, SOME_ONE_SEED
from kd.reports.frame import Arm, Estimate, Frame, seeds_text
from kd.reports.grid import Cell, Grid, number
from kd.reports.settings import TRAINED_ON
from kd.runs.positions import PositionBin, read_positions

HEADINGS = {
    **{name: METRICS[name].title for name in ("forward_kl", "reverse_kl")},
    "entropy": "entropy (nats)",
    "teacher_entropy": "teacher's\nentropy (nats)",
    "top1": METRICS["top1"].title,
}
BOUNDS = {name: (0.0, 1.0 if name == "top1" else math.inf) for name in HEADINGS}
READ = {
    "references": "the references",
    "own": "the system's own answers, drawn at temperature 1",
    "teacher": "the teacher's answers, drawn at temperature 1",
}
ONE_SEED_EACH = "One seed each: there are no intervals."
MEANING = "Position: of a token in its response, from 1. all: the mean over all tokens. n: tokens, mean over seeds."


class Span(NamedTuple):
    """Positions from `first` to `last`; 0 to 0: all."""

    first: int
    last: int

    @property
    def label(self) -> str:
        """`1`, `3–4`, or `all`."""
        if not self.last:
            return "all"
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


ALL = Span(0, 0)
Spans = dict[Span, dict[str, Estimate]]  # by metric; n: tokens


def spans_of(arm: Arm, system: str = "after") -> dict[str, Spans]:
    """By kind of responses, of those that were read, the means over seeds of an arm's own skill; ALL is last.

    The interval is that of `kd.intervals.over_seeds`, in which a seed counts for as many items as it has responses.

    Raises ValueError for a positions.csv that was changed since, or torn.
    """
    seeds = [read_positions(job.folder) for job in arm.runs.values() if job.folder is not None]
    found = {kind: _spans([_of_run(rows, arm.skill, system, kind) for rows in seeds]) for kind in READ}
    return {kind: spans for kind, spans in found.items() if spans}


def _spans(seeds: Sequence[dict[Span, PositionBin]]) -> Spans:
    found: dict[Span, list[PositionBin]] = {}
    for one in filter(None, seeds):
        for place, row in {**one, ALL: _whole(list(one.values()))}.items():
            found.setdefault(place, []).append(row)
    order = sorted(found, key=lambda place: (place == ALL, place))
    return {place: _means(place, found[place]) for place in order}


def _of_run(rows: Sequence[PositionBin], skill: str, system: str, responses: str) -> dict[Span, PositionBin]:
    kept = (row for row in rows if (row.skill, row.system, row.responses) == (skill, system, responses) and row.n)
    return {Span(row.first, row.last): row for row in kept}


def _whole(rows: Sequence[PositionBin]) -> PositionBin:
    """All positions as one bin, with means that are weighted by the tokens of each."""
    total = sum(row.n for row in rows)
    means = {
        name: None
        if any(getattr(row, name) is None for row in rows)
        else sum(row.n * getattr(row, name) for row in rows) / total
        for name in HEADINGS
    }
    means["top1"] = None if means["top1"] is None else min(means["top1"], 1.0)  # but for rounding
    return rows[0].model_copy(update={"n": total, "last": rows[-1].last, **means})


def _means(place: Span, rows: Sequence[PositionBin]) -> dict[str, Estimate]:
    tokens = float(np.mean([row.n for row in rows]))
    found: dict[str, Estimate] = {"n": {"value": tokens, "n": len(rows), "low": None, "high": None}}
    for name in HEADINGS:
        known = [row for row in rows if getattr(row, name) is not None]
        if known:
            items = [-(-row.n // (row.last - row.first + 1)) for row in known]  # responses, at the least
            mean, low, high = over_seeds([getattr(row, name) for row in known], items, BOUNDS[name])
            ends = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
            found[name] = {"value": mean, "n": round(tokens), **ends}
    return found


def positions_grids(frame: Frame, metric: str | None = None, system: str = "after") -> list[Grid]:
    """A table for each skill and kind of responses. Rows: positions × arms. Columns: tokens, divergences, entropies.

    metric: one of HEADINGS, which is then shown alone; any other name: all of them.
    """
    grids = []
    for skill in frame.skills:
        arms = [(arm, spans_of(arm, system)) for arm in frame.arms if arm.skill == skill]
        for responses in READ:
            found = [(arm, own[responses]) for arm, own in arms if responses in own]
            grids.append(_grid(frame, f"{skill}: by position in {READ[responses]}", found, metric, system))
    return [grid for grid in grids if grid is not None]


def _grid(frame: Frame, title: str, found: Sequence[tuple[Arm, Spans]], metric: str | None, system: str) -> Grid | None:
    every = {place for _, spans in found for place in spans}
    measured = {name for _, spans in found for one in spans.values() for name in one}
    shown = [name for name in HEADINGS if name in measured and (metric not in HEADINGS or name == metric)]
    if not shown:
        return None
    names = [name for name in frame.columns if name != TRAINED_ON]
    rows = [
        [place.label, *(arm.values[name] for name in names), *_cells(spans[place], shown)]
        for place in sorted(every, key=lambda place: (place == ALL, place))
        for arm, spans in found
        if place in spans
    ]
    header = ["position", *names, "n", *(HEADINGS[name] for name in shown)]
    notes = [MEANING, *([f"System: {system}."] if system != "after" else []), *seed_notes([arm for arm, _ in found])]
    return Grid(title, header, rows, notes, labels=1 + len(names), folds=True)


def seed_notes(arms: Sequence[Arm]) -> list[str]:
    """Sentences on seeds and brackets, of which one seed has none."""
    several = {len(arm.runs) > 1 for arm in arms}
    kind = [ONE_SEED_EACH] if several == {False} else [SEED_INTERVALS, *([SOME_ONE_SEED] if False in several else [])]
    return [f"{seeds_text(arms)}.", *kind]


def _cells(one: Mapping[str, Estimate], shown: Sequence[str]) -> list[Cell]:
    tokens = one["n"]["value"]
    return [Cell(f"{tokens:,.0f}" if tokens >= 1 else number(tokens), tokens), *(Cell.of(one.get(n)) for n in shown)]
