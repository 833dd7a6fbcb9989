"""The critical-difference diagram of mean ranks over skills (Demšar 2006, JMLR 7, figure 1)."""

import numpy as np
from matplotlib import rc_context

from kd.reports.comparisons.ranks import Ranks, ranks_grid, ranks_of
from kd.reports.figures.style import MOST_ROWS, PAGE, TYPE, Drawn, axes, first_rows
from kd.reports.frame import Frame
from kd.reports.palette import COLOURS
from kd.reports.sweep import Choices


def rank_diagram(frame: Frame, choices: Choices) -> list[Drawn]:
    """One figure; none for fewer than two arms or skills."""
    found = ranks_of(frame, choices.metric, choices.system)
    grid = ranks_grid(frame, choices.metric, choices.system)
    if found is None or grid is None:
        return []
    order = np.argsort(found.means, kind="stable").tolist()[:MOST_ROWS]
    last = float(found.means[order].max())
    groups = [(low, min(high, last)) for low, high in alike(found) if low <= last]
    with rc_context(TYPE):
        thick = "Thick lines join arms that the test does not distinguish."
        caption = [*first_rows(len(found.names)), *grid.notes, thick]
        figure, [ax] = axes(PAGE, 0.7 + 0.2 * (len(order) + len(groups)), caption)
        for place, arm in enumerate(order):
            rank = found.means[arm]
            ax.plot([rank, rank], [0, -(place + 1)], lw=0.6, color="#bbbbbb", zorder=0)
            ax.plot(rank, 0, "o", ms=4, color=COLOURS[0], clip_on=False)
            ax.text(rank, -(place + 1), f" {found.names[arm]} ({rank:.2f})", va="center", ha="left")
        for place, (low, high) in enumerate(groups):
            height = -(len(order) + 1.2 + place)
            ax.plot([low, high], [height, height], lw=3, color=COLOURS[1], solid_capstyle="butt")
        ax.set_xlim(1, max(len(order), last) + 0.6)
        ax.set_ylim(-(len(order) + 1.7 + len(groups)), 0.5)
        ax.xaxis.tick_top()
        ax.xaxis.set_label_position("top")
        ax.set_xlabel("mean rank (1 is the best)")
        ax.set_yticks([])
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.spines["top"].set_visible(True)
    return [Drawn("ranks", figure)]


def alike(found: Ranks) -> list[tuple[float, float]]:
    """The longest stretches of mean ranks that are less than the critical difference wide, of two arms at least."""
    means = sorted(float(mean) for mean in found.means)
    stretches: list[tuple[int, int]] = []
    for i, low in enumerate(means):
        last = max(j for j, high in enumerate(means) if high - low < found.critical)
        if last > i and (not stretches or last > stretches[-1][1]):
            stretches.append((i, last))
    return [(means[i], means[j]) for i, j in stretches]
