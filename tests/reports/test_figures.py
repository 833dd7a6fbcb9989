"""Figures of many runs: what they show is what the tables have, in the right direction, and the same file each time.

Run: python -m pytest tests/reports/test_figures.py
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kd.reports.comparisons.curves import band, series
from kd.reports.comparisons.ranks import Ranks
from kd.reports.comparisons.shades import coloured, line_of, pivot_shades, shades
from kd.reports.figures import FORMATS, write_figures
from kd.reports.figures.curves import curves
from kd.reports.figures.differences import differences
from kd.reports.figures.heat import heat_map
from kd.reports.figures.ranks import alike
from kd.reports.frame import Frame, frame_of
from kd.reports.grid import Cell
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices, tables_of
from tests.reports.folders import write_run
from tests.reports.test_reports import program


def test_bands_are_t_intervals_of_the_seeds_that_logged_a_step() -> None:
    table = pd.DataFrame({1: [1.0, 2.0, 5.0], 2: [2.0, 4.0, np.nan], 3: [6.0, 6.0, np.nan]}, index=[0, 10, 20])
    mean, half = band(table)
    assert mean.tolist() == [3.0, 4.0, 5.0]
    for place, values in ((0, [1, 2, 6]), (1, [2, 4, 6])):
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert (mean[place] - half[place], mean[place] + half[place]) == pytest.approx((low, high))
    assert np.isnan(half[2])  # one seed


def test_the_best_of_a_column_is_the_darkest_whatever_the_direction() -> None:
    column = [Cell.number(3.0), Cell.number(1.0), Cell("–"), Cell.number(2.0)]
    up, down = shades(column, True), shades(column, False)
    assert [up[0], up[1], up[3]] == [1.0, 0.0, 0.5]
    assert [down[0], down[1], down[3]] == [0.0, 1.0, 0.5]
    assert np.isnan(up[2])
    assert shades([Cell.number(0.0), Cell.number(0.0)], True) == [0.5, 0.5]


def test_lines_join_all_ranks_within_the_critical_difference() -> None:
    found = Ranks(list("abcde"), np.array([1.0, 1.5, 2.9, 3.1, 5.0]), ["s"] * 9, 0.01, 1.9)
    assert alike(found) == [(1.0, 1.5), (1.5, 3.1)]
    assert alike(found._replace(critical=0.4)) == [(2.9, 3.1)]
    assert alike(found._replace(critical=10.0)) == [(1.0, 5.0)]


def test_curves_draw_the_means_over_seeds(frame: Frame) -> None:
    drawn = curves(frame, Choices())
    assert [one.name for one in drawn] == [f"curves-{skill}" for skill in frame.skills]
    arms = [arm for arm in frame.arms if arm.skill == frame.skills[0]]
    panel = next(ax for ax in drawn[0].figure.axes if ax.get_title() == "train/loss")
    lines = [line for line in panel.get_lines() if len(line.get_xdata())]
    assert len(lines) == len(arms)
    for arm, line in zip(arms, lines, strict=True):
        table = series(arm)["train/loss"]
        assert list(table.columns) == list(arm.runs)
        assert np.asarray(line.get_ydata()) == pytest.approx(table.mean(axis=1).to_numpy())


def test_the_heat_map_has_the_cells_of_the_pivot(frame: Frame) -> None:
    [grid] = tables_of(frame, Choices(tables=["pivot"]))
    [drawn] = heat_map(frame, Choices())
    texts = [text.get_text() for text in drawn.figure.axes[0].texts]
    cells = [cell for row in grid.rows for cell in row[grid.labels :] if isinstance(cell, Cell)]
    assert [re.sub(r"\s+", " ", text) for text in texts] == [str(cell) for cell in cells]
    assert [text.get_weight() == "bold" for text in drawn.figure.axes[0].texts] == [cell.best for cell in cells]


def test_the_cells_of_one_skill_share_a_scale_and_those_of_several_do_not(frame: Frame, tmp_path: Path) -> None:
    """Two objectives under two learning rates on one skill: 0 is the worst of all four scores, 1 the best."""
    for rate, of in {0.001: {"fkl": 1.0, "rkl": 0.6}, 0.01: {"fkl": 0.4, "rkl": 0.0}}.items():
        for name, right in of.items():
            optim = {"steps": 40, "lr": rate}
            write_run(tmp_path, name, right=right, sections={"compare": None, "optim": optim})
    one = frame_of(read_jobs(tmp_path))
    [grid] = tables_of(one, Choices(tables=["pivot"]))
    values = np.array([[cell.value for cell in row[grid.labels :]] for row in grid.rows])  # type: ignore[attr-defined]
    assert values.tolist()[0][0] == values.max() > values.min() == values.tolist()[1][1]
    assert pivot_shades(one, grid) == pytest.approx((values - values.min()) / (values.max() - values.min()))
    assert line_of(one, grid) == "table"
    assert coloured(one, grid) == "Colours: all scores, dark is better."
    [several] = tables_of(frame, Choices(tables=["pivot"]))
    assert line_of(frame, several) in ("row", "column")


def test_differences_are_those_of_the_table(frame: Frame) -> None:
    [grid] = tables_of(frame, Choices(tables=["differences"]))
    [drawn] = differences(frame, Choices())
    points = [line.get_xdata()[0] for line in drawn.figure.axes[0].get_lines() if line.get_marker() == "o"]
    at = grid.header.index(next(name for name in grid.header if name.startswith("less")))
    assert points == [row[at].value for row in grid.rows]  # type: ignore[attr-defined]


def test_each_figure_is_a_file_of_each_format_and_the_same_each_time(frame: Frame, tmp_path: Path) -> None:
    first, second = (write_figures(frame, Choices(), tmp_path / name) for name in ("a", "b"))
    assert {path.stem.partition("-")[0] for path in first} == {
        *("heat_map", "curves", "differences", "pareto", "ranks", "positions")
    }
    assert {path.suffix[1:] for path in first} == set(FORMATS)
    unlike = [one.name for one, other in zip(first, second, strict=True) if one.read_bytes() != other.read_bytes()]
    assert unlike == []
    text = (tmp_path / "a" / "heat_map.svg").read_text()
    assert all(arm.values["objective"] in text for arm in frame.arms)
    assert "Seeds 1, 2, 3." in text


@pytest.mark.long
def test_the_command_names_its_files_and_its_formats(root: Path, tmp_path: Path) -> None:
    done = program(root, "--figures", tmp_path / "figures", "--figure-formats", "svg")
    assert done.returncode == 0
    assert f"Figures in {tmp_path / 'figures'}: heat_map, curves-" in done.stderr
    wrong = program(root, "--figures", tmp_path / "figures", "--figure-formats", "svg,gif")
    assert "no format 'gif'; take png, svg, pdf" in wrong.stderr
    assert wrong.returncode == 1
