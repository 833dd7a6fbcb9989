"""A paper's table beside that of our runs: the scores, and the directions in which systems differ."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kd.reports.comparisons.differences import METHOD, difference_cell, p_cell
from kd.reports.comparisons.pivot import LEVEL, interval_notes, items_note, mean_of
from kd.reports.corrections import CORRECTIONS
from kd.reports.crossed import Difference
from kd.reports.frame import Arm, Frame
from kd.reports.grid import Cell, Grid, signed
from kd.reports.paired import Pair, Side, mean_difference
from kd.reports.papers.arms import Arms, Place
from kd.reports.papers.published import Direction, Published, Row, read_published

MARK = "*"
UNCONFIRMED = f"{MARK} Number that was not seen in the paper itself."
INSIDE = (
    "In ours: the published number is in our interval; in theirs: ours is in the interval that the paper states, or "
    "within the standard deviation over its seeds."
)
OTHER_SCALE = (
    "Ours is the same grid on other models and skills ({skills}): its numbers are not those of the published columns, "
    "and only directions can be compared."
)
VERDICTS = (
    f"Agrees: ours differs in the claimed direction, p < {LEVEL}; opposite: in the other, p < {LEVEL}; not decided: "
    "neither at this size (models, steps, items, seeds)."
)
STATED = "A word in place of a published difference is where the paper makes the claim: its numbers were not read."
AS_CLAIMED = "Differences are means over the columns, ours over the skills in the table above; positive is as claimed."


def paper_grids(frame: Frame, name: str, *, metric: str | None = None, correction: str = "holm") -> list[Grid]:
    """The scores beside the published ones, and the table of directions where the paper claims any.

    metric: of skills of our own; none: each skill's own.

    Raises ValueError: no such paper, its file is torn, or several arms are a row's.
    """
    published = read_published(name)
    arms = Arms(frame, published, name)
    places = arms.places(metric)
    if not any(arms.fitting.values()) or not places:
        raise ValueError(f"no run has the settings of a row of {published.paper}; its rows: {_rows_text(published)}")
    scores = _beside(arms, places) if places[0].name else _apart(arms, places)
    claims = _directions(arms, places, correction) if published.directions else None
    return [scores, *([claims] if claims else [])]


# --- scores ---


def _beside(arms: Arms, places: Sequence[Place]) -> Grid:
    """One line for each row and column: ours, published, and whether one is within the interval of the other."""
    published, rows, sides = arms.published, [], []
    for row in published.rows:
        for place in places:
            side = arms.side(row, place)
            if side is not None or place.name in row.values:
                rows.append([row.heading, place.heading, *_compared(row, place, _scaled(side, place))])
                sides += [] if side is None else [side]
    header = ["system", "on", "ours", "published", "delta", "in\nours", "in\ntheirs"]
    shown = {place.name for place in places}
    left = [column.heading for name, column in published.columns.items() if name not in shown]
    notes = [*_notes(arms, places, sides), *([f"Not evaluated in ours: {', '.join(left)}."] if left else []), INSIDE]
    return Grid(published.paper, header, rows, notes, labels=2)


def _compared(row: Row, place: Place, ours: Mapping[str, Any] | None) -> list[str]:
    theirs, stated = row.values.get(place.name or ""), row.stated(place.name or "")
    cells: list[str] = [Cell.of(ours), _published(row, place.name or "")]
    if ours is None or theirs is None:
        return [*cells, *["–"] * 3]
    within = _within(theirs, ours.get("low"), ours.get("high"))
    delta = ours["value"] - theirs
    return [*cells, Cell.number(delta, signed(delta)), within, _within(ours["value"], *(stated or (None, None)))]


def _scaled(side: Side | None, place: Place) -> Mapping[str, Any] | None:
    mean = None if side is None else mean_of(side.arm, side.skill, side.metric, side.system)
    if mean is None:
        return None
    ends = {key: mean[key] * place.scale for key in ("value", "low", "high") if mean.get(key) is not None}
    return {"low": None, "high": None, **ends, "n": mean["n"]}


def _within(value: float, low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else "yes" if low <= value <= high else "no"


def _apart(arms: Arms, places: Sequence[Place]) -> Grid:
    """One line for each row: ours by skill of our own, then the published columns."""
    published, sides = arms.published, []
    titles = []
    rows = []
    for row in published.rows:
        own = [arms.side(row, place) for place in places]
        sides += [side for side in own if side is not None]
        columns = [_published(row, name) for name in published.columns]
        rows.append([row.heading, *(Cell.of(_scaled(*one)) for one in zip(own, places, strict=True)), *columns])
    for place in places:
        metric = next((side.arm.metric(side.metric).title for side in sides if side.skill == place.skill), "score")
        titles.append(f"{place.heading}\n{metric}")
    heading = [f"{column.heading}\npublished" for column in published.columns.values()]
    notes = [OTHER_SCALE.format(skills=", ".join(place.skill for place in places)), *_notes(arms, places, sides)]
    return Grid(published.paper, ["system", *titles, *heading], rows, notes)


def _published(row: Row, column: str) -> Cell:
    value, stated = row.values.get(column), row.interval.get(column)
    if value is None:
        return Cell("–")
    spread = f" ± {row.deviation[column]:g}" if column in row.deviation else ""
    spread = f" [{stated[0]:g}, {stated[1]:g}]" if stated else spread
    low, high = row.stated(column) or (None, None)
    return Cell(f"{value:g}{spread}{MARK if column in row.unconfirmed else ''}", value, low, high)


def _notes(arms: Arms, places: Sequence[Place], sides: Sequence[Side]) -> list[str]:
    published = arms.published
    notes = [f"Published ({published.source}): {published.setting}."]
    notes += [published.note] if published.note else []
    notes += [UNCONFIRMED] if any(row.unconfirmed for row in published.rows) else []
    notes += [items_note([mean_of(side.arm, side.skill, side.metric, side.system) for side in sides])]
    notes += interval_notes(list({id(side.arm): side.arm for side in sides}.values()))
    without = [row for row in published.rows if all(arms.side(row, place) is None for place in places)]
    lacking = [f"{row.heading} ({row.lacks})" if row.lacks else row.heading for row in without]
    notes += [f"Without a run of ours: {', '.join(lacking)}."] if lacking else []
    others = dict.fromkeys(map(_label, arms.without_row()))
    return [*notes, *([f"Without a row in the paper: {', '.join(others)}."] if others else [])]


def _label(arm: Arm) -> str:
    return arm.label or arm.skill


def _rows_text(published: Published) -> str:
    """The rows and their settings in one line."""
    texts = []
    for row in published.rows:
        settings = ",".join(f"{name}={value}" for name, value in row.arm.items())
        texts.append(f"{row.heading} ({settings or row.system})")
    return ", ".join(texts)


# --- directions ---


def _directions(arms: Arms, places: Sequence[Place], correction: str) -> Grid:
    """One line for each claim: its published difference, ours, the corrected p, and the verdict."""
    published = arms.published
    found = [mean_difference(_pairs(arms, claim, places)) for claim in published.directions]
    words, correct = CORRECTIONS[correction]
    corrected = correct([math.nan if one is None else one.p for one in found])
    rows = []
    for claim, one, p in zip(published.directions, found, corrected, strict=True):
        mark = "" if published.confirmed(claim) else MARK
        theirs = published.difference(claim)
        ours = Cell("–") if one is None else difference_cell(one)
        cell = Cell(claim.stated or "") if theirs is None else Cell.number(theirs, f"{signed(theirs)}{mark}")
        rows.append([_claim_text(published, claim), cell, ours, p_cell(p), _verdict(one, p)])
    header = ["claim", "published", "ours", "p", "verdict"]
    tested = sum(not math.isnan(p) for p in corrected)
    notes = [AS_CLAIMED, VERDICTS, f"{METHOD} {words[0].upper()}{words[1:]}: {tested} comparisons."]
    notes += [STATED] if any(claim.stated for claim in published.directions) else []
    notes += [UNCONFIRMED] if not all(map(published.confirmed, published.directions)) else []
    return Grid(f"Directions of {published.paper}", header, rows, notes)


def _pairs(arms: Arms, claim: Direction, places: Sequence[Place]) -> list[Pair]:
    """The sides of a claim in each column that it is about; none where one of them was not run."""
    published, named = arms.published, set(arms.published.compared(claim))
    pairs = []
    for place in places:
        if place.name is None or place.name in named:
            one, other = (arms.side(published.by_heading[name], place) for name in (claim.better, claim.than))
            if one is None or other is None:
                return []
            sign = 1 if one.arm.metric(one.metric).higher_is_better else -1
            pairs.append((one, other, sign * place.scale))
    return pairs


def _claim_text(published: Published, claim: Direction) -> str:
    columns = ", ".join(published.columns[name].heading for name in claim.on)
    return f"{claim.better} > {claim.than}" + (f"\non {columns}" if columns else "")


def _verdict(found: Difference | None, p: float) -> str:
    if found is None:
        return "not run"
    if math.isnan(p) or p >= LEVEL:
        return "not decided"
    return "agrees" if found.value > 0 else "opposite"
