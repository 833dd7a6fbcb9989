"""The table of paired differences to a baseline, with tests that are corrected for their number."""

import math
from collections.abc import Mapping
from dataclasses import replace

from kd.reports.comparisons.pivot import LEVEL, mean_of
from kd.reports.corrections import CORRECTIONS
from kd.reports.crossed import Difference
from kd.reports.frame import Arm, Frame, seeds_text
from kd.reports.grid import Cell, Grid, signed
from kd.reports.paired import beside, chosen, difference, left_out_note
from kd.reports.settings import TRAINED_ON

METHOD = (
    "Differences are paired: the same items and seeds. Brackets are 95 % intervals for other items and other seeds "
    "(crossed random effects, Satterthwaite's t), p is of the same test."
)
SEEDS_ALONE = (
    "Where n is –, items are not paired (a metric of the whole corpus, or no items.csv): a paired t over seeds."
)
SOME_SEEDS = "Scores and differences are over the seeds that an arm and its baseline both have."
TWO_SEEDS = "Two seeds show little of the variation between seeds: where it is large, these intervals are too narrow."


def difference_grid(
    frame: Frame,
    baseline: Mapping[str, str] | None = None,
    *,
    metric: str | None = None,
    system: str = "after",
    correction: str = "holm",
) -> Grid | None:
    """Rows: arms. Columns: score, that of the baseline, the difference, its interval, and the corrected p.

    baseline: settings of the arm that all are compared with; none: each with the run beside it (`compare`). None where
    no arm has a baseline with a seed in common.

    Raises ValueError where no arm has the settings, or several fit alike.
    """
    others = beside(frame) if baseline is None else chosen(frame, baseline)
    compared: list[tuple[Arm, Arm, str, Difference]] = []
    for i, arm in enumerate(frame.arms):
        name = metric or arm.headline(arm.skill)
        if i in others and name is not None:
            found = difference(arm, others[i], arm.skill, name, system)
            if found is not None:
                compared.append((arm, others[i], name, found))
    if not compared:
        return None
    words, correct = CORRECTIONS[correction]
    corrected = correct([found.p for *_, found in compared])
    rows = [_row(frame, *one, p, system) for one, p in zip(compared, corrected, strict=True)]
    alone = len({other.label for _, other, _, _ in compared}) == 1
    name = compared[0][1].label if alone else "baseline"
    titles = list(dict.fromkeys(arm.metric(metric).title for arm, _, metric, _ in compared))
    several = ["metric"] if len(titles) > 1 else []
    header = [*frame.columns, *several, f"less\n{name}", "p", "n", "score" if several else titles[0], name]
    if several:
        rows = [
            [*row[: len(frame.columns)], arm.metric(one).title, *row[len(frame.columns) :]]
            for row, (arm, _, one, _) in zip(rows, compared, strict=True)
        ]
    return Grid(f"Less {name}", header, rows, _notes(compared, words, frame), labels=len(frame.columns))


def _row(frame: Frame, arm: Arm, other: Arm, metric: str, found: Difference, p: float, system: str) -> list[str]:
    better = found.value > 0 if arm.metric(metric).higher_is_better else found.value < 0
    seeds = arm.estimates(arm.skill, metric, system).keys() & other.estimates(arm.skill, metric, system).keys()
    mean, base = (
        mean_of(replace(one, runs={seed: one.runs[seed] for seed in sorted(seeds)}), arm.skill, metric, system)
        for one in (arm, other)
    )
    return [
        *(arm.values[name] for name in frame.columns),
        difference_cell(found, best=bool(better and p < LEVEL)),
        p_cell(p),
        Cell.number(found.items, str(found.items)) if found.items else "–",
        Cell.number(mean["value"] if mean else None),
        Cell.number(base["value"] if base else None),
    ]


def difference_cell(found: Difference, *, best: bool = False) -> Cell:
    """`+0.12 [0.05, 0.19]`."""
    if math.isnan(found.low):
        return Cell(signed(found.value), found.value, n=found.items)
    text = f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"
    return Cell(text, found.value, found.low, found.high, found.items, best)


def p_cell(p: float) -> Cell:
    """Two digits; nothing below a thousandth; a dash where nothing was tested."""
    if math.isnan(p):
        return Cell("–")
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}", p)


def _notes(compared: list[tuple[Arm, Arm, str, Difference]], words: str, frame: Frame) -> list[str]:
    tested = sum(not math.isnan(found.p) for *_, found in compared)
    seeds = {found.seeds for *_, found in compared}
    notes = [f"{METHOD} {words[0].upper()}{words[1:]}: {tested} comparisons; bold: better, p < {LEVEL}."]
    notes += [f"{seeds_text([arm for arm, *_ in compared])}."]
    notes += ["One seed: the intervals are for other items alone."] if 1 in seeds else []
    notes += [TWO_SEEDS] if 2 in seeds else []
    notes += [SEEDS_ALONE] if any(not found.items for *_, found in compared) else []
    notes += [SOME_SEEDS] if any(found.seeds < max(len(a.runs), len(b.runs)) for a, b, _, found in compared) else []
    notes += left_out_note([found for *_, found in compared])
    directions = {arm.metric(metric).higher_is_better for arm, _, metric, _ in compared}
    notes += ["Lower is better."] if directions == {False} else []
    return [*notes, *(note for note in frame.notes if TRAINED_ON not in note)]
