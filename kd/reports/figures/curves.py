"""Learning curves: what runs logged by step, as means over seeds with their intervals."""

import pandas as pd
from matplotlib import rc_context

from kd.reports.comparisons.curves import BANDS, PANELS, band, series, shown, terms_of
from kd.reports.figures.style import PAGE, TYPE, Drawn, axes, drawn, drawn_with, legend, legend_height
from kd.reports.frame import Frame, seeds_text
from kd.reports.sweep import Choices


def curves(frame: Frame, choices: Choices) -> list[Drawn]:
    """A figure for each skill that was trained on: a panel for each logged metric, a line for each arm.

    Raises ValueError if a run is DONE and its metrics.csv is not as it was then.
    """
    found = []
    for skill in frame.skills:
        arms, left_out = drawn([arm for arm in frame.arms if arm.skill == skill])
        logged = {arm.label: series(arm) for arm in arms}
        names = shown(logged, terms_of(arms))
        if not names:
            continue
        names, left = names[:PANELS], names[PANELS:]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        with rc_context(TYPE):
            caption = [f"Trained on {skill}.", *left_out, f"{seeds_text(arms)}.", BANDS]
            caption += [f"Not drawn: {', '.join(left)}."] if left else []
            height = 1.7 * rows + 0.3 + legend_height(list(logged))
            figure, panels = axes(PAGE, height, caption, rows=rows, columns=columns)
            for ax, name in zip(panels, names, strict=False):
                for place, one in enumerate(logged.values()):
                    if name in one:
                        _line(ax, one[name], place)
                ax.set_title(name)
                ax.set_xlabel("step")
            for ax in panels[len(names) :]:
                ax.set_visible(False)
            legend(figure, panels[0], list(enumerate(logged)))
        found.append(Drawn(f"curves-{skill}", figure))
    return found


def _line(ax, table: pd.DataFrame, place: int) -> None:
    steps = table.index.to_numpy()
    mean, half = band(table)
    every = max(1, len(steps) // 8)
    line = drawn_with(place)
    ax.plot(steps, mean, lw=1, ms=3, markevery=every, **line)
    ax.fill_between(steps, mean - half, mean + half, color=line["color"], alpha=0.18, lw=0)
