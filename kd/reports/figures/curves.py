"""Learning curves: what runs logged by step, as means over seeds with their intervals."""

from collections.abc import Mapping
from itertools import islice

import numpy as np
import pandas as pd
from matplotlib import rc_context
from scipy import stats

from kd.reports.figures.style import PAGE, TYPE, Drawn, axes, drawn_with
from kd.reports.frame import Arm, Frame, seeds_text
from kd.reports.sweep import Choices
from kd.runs.results import check_page

PANELS = 6  # at most
FIRST = (  # in this order, after the scores of tasks
    *("validation/bits_per_byte", "validation/forward_kl", "validation/reverse_kl", "train/loss", "train/grad_norm"),
    *("train/truncated", "train/response_tokens", "train/entropy", "train/lr"),
)
BANDS = (
    "Lines: means over seeds. Bands: 95 % t intervals over seeds at each step, on the plain scale; none of one seed."
)


def curves(frame: Frame, choices: Choices) -> list[Drawn]:
    """A figure for each skill that was trained on: a panel for each logged metric, a line for each arm.

    Raises ValueError if a run is DONE and its metrics.csv is not as it was then.
    """
    found = []
    for skill in frame.skills:
        arms = [arm for arm in frame.arms if arm.skill == skill]
        logged = {arm.label: series(arm) for arm in arms}
        names = shown(logged)
        if not names:
            continue
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        with rc_context(TYPE):
            caption = [f"Trained on {skill}.", f"{seeds_text(arms)}.", BANDS]
            figure, panels = axes(PAGE, 1.7 * rows + 0.5, caption, rows=rows, columns=columns)
            for ax, name in zip(panels, names, strict=False):
                for place, one in enumerate(logged.values()):
                    if name in one:
                        _line(ax, one[name], place)
                ax.set_title(name)
                ax.set_xlabel("step")
            for ax in panels[len(names) :]:
                ax.set_visible(False)
            handles = [panels[0].plot([], [], label=name, ms=4, **drawn_with(i))[0] for i, name in enumerate(logged)]
            figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
        found.append(Drawn(f"curves-{skill}", figure))
    return found


def series(arm: Arm) -> dict[str, pd.DataFrame]:
    """`split/name` -> a frame [steps, seeds] of the values that the arm's runs logged."""
    tables: dict[str, dict[int, pd.Series]] = {}
    for seed, job in arm.runs.items():
        if job.folder is None or not (path := job.folder / "metrics.csv").exists():
            continue
        check_page(job.folder, path.name)
        rows = pd.read_csv(path, dtype={"split": str, "name": str}).fillna({"split": ""})
        for (split, name), own in rows.groupby(["split", "name"]):
            tables.setdefault(f"{split}/{name}", {})[seed] = own.groupby("step")["value"].last()
    return {name: pd.DataFrame(columns) for name, columns in tables.items()}


def shown(logged: Mapping[str, Mapping[str, pd.DataFrame]]) -> list[str]:
    """The metrics that get a panel: those of tasks, then `FIRST`, each with two steps at least in some arm."""
    names = dict.fromkeys(name for one in logged.values() for name, table in one.items() if len(table) > 1)
    tasks = [name for name in names if name.partition("/")[0] not in ("train", "validation", "")]
    return list(islice([*tasks, *(name for name in FIRST if name in names)], PANELS))


def band(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds at each step, and half the width of its 95 % t interval; NaN of one seed."""
    count = table.notna().sum(axis=1).to_numpy()
    spread = table.std(axis=1, ddof=1).to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * spread / np.sqrt(count)
    return table.mean(axis=1).to_numpy(), np.where(count > 1, half, np.nan)


def _line(ax, table: pd.DataFrame, place: int) -> None:
    steps = table.index.to_numpy()
    mean, half = band(table)
    every = max(1, len(steps) // 8)
    line = drawn_with(place)
    ax.plot(steps, mean, lw=1, ms=3, markevery=every, **line)
    ax.fill_between(steps, mean - half, mean + half, color=line["color"], alpha=0.18, lw=0)
