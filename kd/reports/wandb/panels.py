"""The panels of the comparison dashboard: of every name that a panel shows, some run logs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr

from kd.reports.comparisons.costs import COSTS
from kd.reports.comparisons.curves import logged
from kd.reports.comparisons.pivot import default_axes, pivot_grid
from kd.reports.comparisons.positions import HEADINGS, READ
from kd.reports.frame import Arm, Frame
from kd.reports.render import markdown
from kd.reports.settings import ORDER, TRAINED_ON
from kd.reports.sweep import Choices
from kd.reports.wandb.final import HEADLINE, POSITION, answers_beside, by_position, final, lengths
from kd.reports.wandb.record import AXIS, STEP

ANSWERS = "tables/answers"
SYSTEMS = ("floor", "before", "sft", "after", "teacher")
LEARNING = ("train/loss", "validation/bits_per_byte", "validation/nll", "train/grad_norm", "train/lr")
DISTANCE = ("validation/forward_kl", "validation/reverse_kl", "train/entropy")
RESPONSES = ("train/response_tokens", "train/truncated", "train/generation_share", "train/tokens_per_second")


@dataclass(frozen=True)
class Names:
    """The names that the runs of a skill log.

    Attributes:
        history: those that have a value by step.
        summary: those with a final value, and ANSWERS where there are answers.
        varied: final values that differ between runs.
    """

    history: Sequence[str]
    summary: Sequence[str]
    varied: Sequence[str]


def names_of(arms: Sequence[Arm]) -> Names:
    """The names that the finished runs of arms log. Raises ValueError if a file is not as it was when its run ended."""
    history: dict[str, None] = {}
    finals: list[Mapping[str, float]] = []
    for skill, job in ((arm.skill, job) for arm in arms for job in arm.runs.values()):
        if job.folder is None or job.results is None:
            continue
        history |= dict.fromkeys(logged(job))
        history |= dict.fromkeys(name for row in by_position(job.folder, skill) for name in row)
        texts = answers_beside(job.folder, None)
        finals.append({**final(job.results), **lengths(texts), **({ANSWERS: len(texts)} if texts else {})})
    summary = dict.fromkeys(name for one in finals for name in one)
    varied = [name for name in summary if len({one[name] for one in finals if name in one}) > 1]
    return Names(list(history), list(summary), varied)


def grouping(frame: Frame) -> str:
    """The key of a W&B run's config by which curves and bars are grouped: the objective, or else what differs."""
    axes = [name for name in frame.columns if name in ORDER and name != TRAINED_ON]
    return f"{AXIS}{'objective' if 'objective' in axes or not axes else axes[0]}"


def sections(frame: Frame, skill: str) -> list[tuple[str, list[Any]]]:
    """Title and panels of each section, for the runs that were trained on `skill`; sections without a panel are left
    out."""
    arms = [arm for arm in frame.arms if arm.skill == skill]
    names, by = names_of(arms), grouping(frame)
    heads = [f"{HEADLINE}/{system}" for system in SYSTEMS if f"{HEADLINE}/{system}" in names.summary]
    metric = arms[0].metric(arms[0].headline(skill) or "").title
    tasks = [name for name in names.history if name.partition("/")[0] == skill]
    weights = [name for name in names.history if name.startswith("train/") and name.endswith("_weight")]
    found = {
        "Scores": [_bars(f"{skill}: {metric}, all systems", heads, by)] if heads else [],
        "Curves": _lines(names, [*tasks, *LEARNING, *weights], by),
        "Score against cost": _fronts(names, metric),
        "Distance from the teacher": [
            *_lines(names, DISTANCE, by),
            *_agreement(names, by),
        ],
        "By position": _by_position(names, by),
        "Length and truncation": [*_lines(names, RESPONSES, by), *_lengths(names, skill, by)],
        "Answers": [wr.WeavePanelSummaryTable(table_name=ANSWERS)] if ANSWERS in names.summary else [],
        "Runs": [wr.RunComparer(diff_only="split")],
    }
    return [(title, panels) for title, panels in found.items() if panels]


def score_table(frame: Frame, choices: Choices) -> str:
    """The heat map's numbers as a Markdown table, objective × skill where these vary; empty where fewer settings do, or
    nothing was measured.

    W&B has no chart of one number by two settings of runs, so that the table is written when the dashboard is made.
    """
    pair = tuple(choices.pivot.split(",")) if choices.pivot else default_axes(frame)
    if pair is None or len(pair) != 2:
        return ""
    facts: dict[str, Any] = {"metric": choices.metric, "system": choices.system, "correction": choices.correction}
    grid = pivot_grid(frame, *pair, **facts)
    return "" if grid is None else markdown(grid)


def _lines(names: Names, wanted: Sequence[str], by: str) -> list[Any]:
    return [_line(name, name, by, STEP) for name in wanted if name in names.history]


def _line(title: str, name: str, by: str, x: str) -> Any:
    """The curve of a name over `x`; positions, of which each bin has twice as many as that before, in powers of ten."""
    return wr.LinePlot(
        title=title,
        x=x,
        y=[name],
        groupby=wr.Config(by),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        title_x={STEP: "step", POSITION: "position"}[x],
        log_x=True if x == POSITION else None,
    )


def _by_position(names: Names, by: str) -> list[Any]:
    """A panel for each kind of responses and number that some run measured by the position of a token."""
    return [
        _line(f"{HEADINGS[metric]} by position in {READ[responses]}".replace("\n", " "), name, by, POSITION)
        for responses in READ
        for metric in HEADINGS
        if (name := f"positions/{responses}/{metric}") in names.history
    ]


def _bars(title: str, metrics: Sequence[str], by: str) -> Any:
    return wr.BarPlot(
        title=title,
        metrics=list(metrics),
        groupby=wr.Config(by),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _agreement(names: Names, by: str) -> list[Any]:
    metrics = dict.fromkeys(name.split("/")[1] for name in names.summary if name.startswith("agreement/"))
    shown = {
        metric: [name for name in (f"agreement/{metric}/{system}" for system in SYSTEMS) if name in names.summary]
        for metric in metrics
    }
    return [_bars(f"{metric}, all systems", found, by) for metric, found in shown.items() if found]


def _lengths(names: Names, skill: str, by: str) -> list[Any]:
    found = []
    for kind, title in (("tokens", "tokens of an answer"), ("truncated", "share of answers that are truncated")):
        shown = [name for name in (f"answers/{skill}/{system}/{kind}" for system in SYSTEMS) if name in names.summary]
        found += [_bars(title, shown, by)] if shown else []
    return found


def _fronts(names: Names, metric: str) -> list[Any]:
    """Scatter plots of the score against each cost in which runs differ."""
    score = f"{HEADLINE}/after"
    costs = [name for name in (f"budget/{cost}" for cost in COSTS) if name in names.varied]
    return [
        wr.ScatterPlot(
            title=f"{metric} against {COSTS[cost.partition('/')[2]].replace(chr(10), ' ')}",
            x=wr.SummaryMetric(cost),
            y=wr.SummaryMetric(score),
        )
        for cost in costs
        if score in names.summary
    ]
