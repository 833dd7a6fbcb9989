"""KL both ways, entropy and agreement by the position of a token in its response: a line for each arm."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context

from kd.reports.comparisons.positions import ALL, HEADINGS, READ, Span, Spans, seed_notes, spans_of
from kd.reports.figures.style import PAGE, TYPE, Drawn, axes, drawn, drawn_with, legend, legend_height
from kd.reports.frame import Arm, Frame
from kd.reports.sweep import Choices

PANELS = ("forward_kl", "reverse_kl", "entropy", "top1")
BELOW = "Under each position stands the number of its tokens n, the mean over seeds."
BANDS = "Lines: means over seeds. Bands: their 95 % intervals."


def positions(frame: Frame, choices: Choices) -> list[Drawn]:
    """A figure for each skill that was trained on and each kind of responses that was read.

    Raises ValueError for a positions.csv that was changed since, or torn.
    """
    found = []
    for skill in frame.skills:
        arms, left_out = drawn([arm for arm in frame.arms if arm.skill == skill])
        own = {arm.label: spans_of(arm, choices.system) for arm in arms}
        for responses in READ:
            lines = {label: spans.get(responses, {}) for label, spans in own.items()}
            found.append(_figure(skill, responses, arms, lines, left_out))
    return [one for one in found if one is not None]


def _figure(
    skill: str, responses: str, arms: Sequence[Arm], lines: Mapping[str, Spans], left_out: Sequence[str]
) -> Drawn | None:
    names = [name for name in PANELS if any(_known(one, name) for one in lines.values())]
    if not names or max(map(len, lines.values())) < 3:  # one position and ALL make no line
        return None
    labels = [(i, label) for i, (label, one) in enumerate(lines.items()) if one]
    caption = [f"Trained on {skill}; {READ[responses]}.", *left_out, BELOW, BANDS, *seed_notes(arms)]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    height = 2.0 * rows + 0.3 + legend_height([label for _, label in labels])
    with rc_context(TYPE):
        figure, panels = axes(PAGE, height, caption, rows=rows, columns=columns)
        for ax, name in zip(panels, names, strict=False):
            _panel(ax, lines, name)
        for ax in panels[len(names) :]:
            ax.set_visible(False)
        legend(figure, panels[0], labels)
    return Drawn(f"positions-{skill}{'' if responses == 'references' else f'-{responses}'}", figure)


def _known(spans: Spans, name: str) -> dict[Span, Mapping[str, float | None]]:
    return {place: one[name] for place, one in spans.items() if name in one and place != ALL}


def _panel(ax, lines: Mapping[str, Spans], name: str) -> None:
    places = sorted({place for one in lines.values() for place in one if place != ALL})
    at = {place: i for i, place in enumerate(places)}
    for i, (_, spans) in enumerate(lines.items()):
        known = _known(spans, name)
        line = drawn_with(i)
        x = [at[place] for place in known]
        ax.plot(x, [one["value"] for one in known.values()], lw=1, ms=3, **line)
        low, high = (
            [one["value"] if one[end] is None else one[end] for one in known.values()] for end in ("low", "high")
        )
        ax.fill_between(x, low, high, color=line["color"], alpha=0.18, lw=0)
    if name == "entropy":
        _teachers(ax, lines, at)
    ax.set_xticks(range(len(places)), [f"{place.label}\n{_tokens(lines, place)}" for place in places], fontsize=6)
    ax.set_title(HEADINGS[name])
    ax.set_xlabel("position, n", fontsize=6.5)
    ax.set_ylim(bottom=0)


def _teachers(ax, lines: Mapping[str, Spans], at: Mapping[Span, int]) -> None:
    """The teachers' entropy, each that differs as a dotted line."""
    drawn_before = set[tuple[tuple[int, float], ...]]()
    for spans in lines.values():
        known = _known(spans, "teacher_entropy")
        values = tuple((at[place], one["value"]) for place, one in known.items())
        rounded = tuple((x, round(float(y or 0.0), 6)) for x, y in values)
        if values and rounded not in drawn_before:
            ax.plot(*zip(*values, strict=True), lw=1, ls=":", color="black", label=None if drawn_before else "teacher")
            drawn_before.add(rounded)
    if drawn_before:
        ax.legend(fontsize=6.5)


def _tokens(lines: Mapping[str, Spans], place: Span) -> str:
    """The tokens at a position; those of the arm with the fewest and the most where they differ."""
    counts = sorted({round(one[place]["n"]["value"]) for one in lines.values() if place in one})
    return _short(counts[0]) if len(counts) == 1 else f"{_short(counts[0])}–{_short(counts[-1])}"


def _short(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.3g}k"
