"""Score against cost: the points of all arms, and the front that no other arm beats in both."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.ticker import EngFormatter, MaxNLocator

from kd.reports.comparisons.costs import OF_TEACHER, OF_TRAINING, TEACHER_FLOPS, TITLES, budgets_of
from kd.reports.comparisons.pareto import STEPS, front, points
from kd.reports.comparisons.pivot import facts_of, headline_of, interval_notes, mean_of
from kd.reports.figures.style import PAGE, TYPE, Drawn, axes, drawn, drawn_with, legend, legend_height
from kd.reports.frame import Arm, Frame
from kd.reports.sweep import Choices

RULE = "Line: the front, where no other arm costs no more and scores no worse; its points are means, without a test."


def fronts(frame: Frame, choices: Choices) -> list[Drawn]:
    """A figure for each skill that was trained on: a panel for each cost in which arms differ."""
    found = []
    for skill in frame.skills:
        arms, left = drawn([arm for arm in frame.arms if arm.skill == skill])
        costs = [cost for cost in (STEPS, *budgets_of(arms)) if len({spent for _, spent, _ in points(arms, cost)}) > 1]
        if len(arms) < 2 or not costs:
            continue
        with rc_context(TYPE):
            caption = [f"Trained on {skill}.", *left, RULE, *interval_notes(arms), OF_TRAINING]
            caption += [OF_TEACHER] if TEACHER_FLOPS in costs else []
            columns = min(3, len(costs))
            rows = -(-len(costs) // columns)
            labels = [arm.label for arm in arms]
            height = 1.9 * rows + 0.2 + legend_height(labels)
            figure, panels = axes(PAGE, height, caption, rows=rows, columns=columns)
            for ax, cost in zip(panels, costs, strict=False):
                _panel(ax, frame, arms, cost, choices.metric)
            for ax in panels[len(costs) :]:
                ax.set_visible(False)
            legend(figure, panels[0], list(enumerate(labels)), lines=False)
        found.append(Drawn(f"pareto-{skill}", figure))
    return found


def _panel(ax, frame: Frame, arms: Sequence[Arm], cost: str, metric: str | None) -> None:
    name = metric or headline_of(arms, arms[0].skill) or ""
    for arm, spent, _ in points(arms, cost, metric):
        mean = mean_of(arm, arm.skill, name)
        assert mean is not None
        mark = drawn_with(next(i for i, one in enumerate(arms) if one is arm)) | {"linestyle": ""}
        ends = None
        if mean.get("low") is not None and mean.get("high") is not None:
            ends = [[mean["value"] - mean["low"]], [mean["high"] - mean["value"]]]
        ax.errorbar(spent, mean["value"], yerr=ends, ms=4, lw=1, **mark)
    facts = facts_of(arms, name)
    sign = 1 if facts.higher_is_better else -1
    for group in frame.comparable(arms):
        known = points(group, cost, name)
        kept = front([(spent, score) for _, spent, score in known])
        line = sorted((spent, sign * score) for (_, spent, score), on in zip(known, kept, strict=True) if on)
        if line:
            ax.step(*zip(*line, strict=True), where="post", lw=0.8, color="#888888", zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel(cost if cost == STEPS else TITLES[cost].replace("\n", " "))
    ax.set_ylabel(facts.title)
