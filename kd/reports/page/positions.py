"""Divergence from the teacher, agreement and entropy by position on the page: the curves of the table `positions`."""

from collections.abc import Sequence
from typing import Any

from kd.reports.comparisons.pivot import MOST_TESTED
from kd.reports.comparisons.positions import ALL, HEADINGS, MEANING, READ, Span, Spans, seed_notes, spans_of
from kd.reports.frame import Arm, Frame
from kd.reports.page.tables import drawn
from kd.reports.sweep import Choices
from kd.runs.positions import NAME

LINES = 40  # arms of a figure, at most
BANDS = "Lines: means over seeds. Bands: their 95 % intervals."


def position_curves(frame: Frame, choices: Choices) -> list[dict[str, Any]]:
    """Curves by skill, kind of responses and metric; none of too many runs or of fewer than two positions.

    Raises ValueError for a positions.csv that was changed since, or torn.
    """
    if _too_many(frame):
        return []
    found = []
    for skill in frame.skills:
        arms = [(place, arm) for place, arm in enumerate(frame.arms) if arm.skill == skill][:LINES]
        own = [(place, arm, spans_of(arm)) for place, arm in arms]
        for responses in READ:
            lines = [(place, arm, spans[responses]) for place, arm, spans in own if responses in spans]
            found += _figures(skill, responses, lines, choices.command("positions"))
    return found


def _too_many(frame: Frame) -> bool:
    return sum(len(arm.runs) for arm in frame.arms) > MOST_TESTED


def left_out(frame: Frame) -> list[str]:
    """A sentence, where there are too many runs for curves by position."""
    folders = (job.folder for arm in frame.arms for job in arm.runs.values() if job.folder is not None)
    if not _too_many(frame) or not any((folder / NAME).is_file() for folder in folders):
        return []
    return [
        f"Curves by position are not on the page: there are more than {MOST_TESTED} runs; they are printed by "
        "python -m kd.reports PATH --tables positions."
    ]


def _figures(
    skill: str, responses: str, lines: Sequence[tuple[int, Arm, Spans]], command: str | None
) -> list[dict[str, Any]]:
    """The figures of all metrics. x: places in `positions`, which are [label, tokens]."""
    places = sorted({place for *_, spans in lines for place in spans if place != ALL})
    if len(places) < 2:
        return []
    shared = {
        "positions": [[place.label, _tokens(place, [spans for *_, spans in lines])] for place in places],
        "notes": [f"Read: {READ[responses]}.", MEANING, BANDS, *seed_notes([arm for _, arm, _ in lines])],
        "command": command,
    }
    found = []
    for name, heading in HEADINGS.items():
        curves = [(i, _curve(places, spans, name)) for i, _, spans in lines]
        known = [{"arm": i, "curve": curve} for i, curve in curves if curve["x"]]
        by = [skill, READ[responses], heading.replace("\n", " ")]
        found += [{"by": by, "lines": known, **shared}] if known else []
    return found


def _curve(places: Sequence[Span], spans: Spans, name: str) -> dict[str, Any]:
    known = [(x, spans[place][name]) for x, place in enumerate(places) if name in spans.get(place, {})]
    found: dict[str, Any] = {"x": [x for x, _ in known], "y": [drawn(one["value"]) for _, one in known]}
    if any(one["low"] is not None for _, one in known):
        found |= {end: [drawn(one[end]) for _, one in known] for end in ("low", "high")}
    return found


def _tokens(place: Span, every: Sequence[Spans]) -> str:
    """`n 60`, or of the arms with the fewest and the most `n 40–60`."""
    counts = sorted({round(spans[place]["n"]["value"]) for spans in every if place in spans})
    return f"n {counts[0]:,}" if len(counts) == 1 else f"n {counts[0]:,}–{counts[-1]:,}"
