"""The table and the figure of divergence by position: means over seeds of what runs wrote.

Run: python -m pytest tests/reports/test_by_position.py
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd.intervals import over_seeds
from kd.reports.comparisons.positions import ALL, HEADINGS, Span, spans_of
from kd.reports.figures.positions import positions
from kd.reports.frame import Arm, Frame, frame_of
from kd.reports.grid import Cell
from kd.reports.page import positions as page_positions
from kd.reports.page.content import content
from kd.reports.page.positions import left_out, position_curves
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices, tables_of
from kd.reports.wandb.final import POSITION, by_position
from kd.runs.folder import RunFolder
from kd.runs.positions import positions_csv
from tests.reports.folders import write_run
from tests.reports.test_report_tables import shown

BINS = ((1, 1, 32), (2, 2, 32), (3, 4, 60), (5, 8, 40))  # first, last, tokens
LEVEL = {"fkl": 0.2, "rkl": 0.5}


def row(bins: tuple[int, int, int], level: float, **changes: Any) -> dict[str, Any]:
    """A bin with a divergence that grows with the position."""
    first, last, n = bins
    kl = level * (1 + math.log2(last))
    numbers = {"top1": 1 / (1 + kl), "forward_kl": kl, "reverse_kl": 2 * kl, "entropy": 1.5, "teacher_entropy": 1.0}
    place = {"skill": "sums", "system": "after", "responses": "references", "first": first, "last": last, "n": n}
    return {**place, **numbers, **changes}


def write(folder: RunFolder, level: float) -> None:
    rows = [row(one, level) for one in BINS]
    rows += [row(one, 3 * level, system="before") for one in BINS]
    rows += [row(one, 2 * level, responses="own", n=50) for one in BINS[:2]]
    rows += [row(BINS[0], 9.0, skill="words")]  # evaluated on, not trained on
    folder.write_positions(positions_csv(rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("positions") / "outputs"
    for objective, level in LEVEL.items():
        for seed in (1, 2, 3):
            write(write_run(folder, objective, seed=seed), level * (1 + 0.1 * seed))
    return folder


@pytest.fixture(scope="module")
def frame(root: Path) -> Frame:
    return frame_of(read_jobs(root))


def arm_of(frame: Frame, objective: str) -> Arm:
    return next(arm for arm in frame.arms if arm.values["objective"] == objective)


def test_means_over_seeds_by_hand(frame: Frame) -> None:
    found = spans_of(arm_of(frame, "fkl"))["references"]
    assert list(found) == [Span(1, 1), Span(2, 2), Span(3, 4), Span(5, 8), ALL]
    for (first, last, n), (place, one) in zip(BINS, found.items(), strict=False):
        values = [0.2 * (1 + 0.1 * seed) * (1 + math.log2(last)) for seed in (1, 2, 3)]
        assert place == (first, last)
        assert one["n"]["value"] == n
        mean, low, high = over_seeds(values, [32] * 3, (0.0, math.inf))
        assert [one["forward_kl"][key] for key in ("value", "low", "high")] == pytest.approx([mean, low, high])


def test_the_mean_of_all_is_weighted_by_tokens(frame: Frame) -> None:
    """164 tokens: 32 at log2(last) 0, 32 at 1, 60 at 2, 40 at 3; the mean level of the seeds is 0.2 × 1.2."""
    found = spans_of(arm_of(frame, "fkl"))["references"][ALL]
    expected = 0.24 * (32 * 1 + 32 * 2 + 60 * 3 + 40 * 4) / 164
    assert found["forward_kl"]["value"] == pytest.approx(expected)
    assert found["n"]["value"] == 164
    assert found["entropy"]["value"] == pytest.approx(1.5)


def test_the_table_has_a_row_for_each_position_and_arm(frame: Frame) -> None:
    grid, own = tables_of(frame, Choices(tables=["positions"]))
    assert grid.title == "sums: by position in the references"
    assert [row[:3] for row in grid.rows[:2]] == [["1", "fkl", "32"], ["1", "rkl", "32"]]
    assert [row[0] for row in grid.rows] == [name for name in ("1", "2", "3–4", "5–8", "all") for _ in range(2)]
    column = grid.header.index(HEADINGS["reverse_kl"])
    cell = grid.rows[3][column]
    assert isinstance(cell, Cell)
    assert cell.value == pytest.approx(2 * 0.5 * 1.2 * 2)
    assert own.title == "sums: by position in the system's own answers, drawn at temperature 1"
    assert "Seeds 1, 2, 3." in grid.notes
    assert max(map(len, shown(grid).splitlines())) <= 80


def test_one_metric_and_another_system(frame: Frame) -> None:
    (grid, *_) = tables_of(frame, Choices(tables=["positions"], metric="top1", system="before"))
    assert grid.header[2:] == ["n", HEADINGS["top1"]]
    value = np.mean([1 / (1 + 0.6 * (1 + 0.1 * seed)) for seed in (1, 2, 3)])
    assert grid.rows[0][-1].value == pytest.approx(value)  # type: ignore[attr-defined]
    assert "System: before." in grid.notes
    with pytest.raises(ValueError, match=r"--tables positions needs runs with positions\.csv"):
        tables_of(frame, Choices(tables=["positions"], system="uniform"))


def test_of_one_seed_there_is_no_interval(tmp_path: Path) -> None:
    write(write_run(tmp_path, "fkl"), 0.2)
    (grid, *_) = tables_of(frame_of(read_jobs(tmp_path)), Choices(tables=["positions"]))
    assert grid.header[0] == "position"
    assert all("[" not in cell for row in grid.rows for cell in row)
    assert "One seed each: there are no intervals." in grid.notes


def test_a_file_that_was_changed_since_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fkl")
    write(folder, 0.2)
    folder.finish(folder.results())  # which records it
    path = folder.path / "positions.csv"
    path.write_text(path.read_text().replace("0.2", "0.1"))
    with pytest.raises(ValueError, match=r"positions\.csv was changed or damaged since the run ended"):
        tables_of(frame_of(read_jobs(tmp_path)), Choices(tables=["positions"]))


def test_the_figure_draws_the_table(frame: Frame) -> None:
    drawn = {one.name: one.figure for one in positions(frame, Choices())}
    assert list(drawn) == ["positions-sums", "positions-sums-own"]
    panels = {ax.get_title(): ax for ax in drawn["positions-sums"].axes}
    assert list(panels) == [HEADINGS[name] for name in ("forward_kl", "reverse_kl", "entropy", "top1")]
    panel = panels[HEADINGS["forward_kl"]]
    lines = [line for line in panel.get_lines() if len(line.get_xdata())]
    for arm, line in zip(frame.arms, lines, strict=True):
        values = [one["forward_kl"]["value"] for place, one in spans_of(arm)["references"].items() if place != ALL]
        assert np.asarray(line.get_ydata()) == pytest.approx(values)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["1\n32", "2\n32", "3–4\n60", "5–8\n40"]
    teacher = panels[HEADINGS["entropy"]].get_lines()[-1]
    assert (teacher.get_linestyle(), list(teacher.get_ydata())) == (":", pytest.approx([1.0] * 4))


# --- the page and W&B ---


def test_the_page_has_the_curves_of_the_table(root: Path, frame: Frame) -> None:
    """fkl's level is 0.2 × (1 + 0.1 seed), 0.24 in the mean; the forward KL is that × (1 + log2 of a bin's end)."""
    figures = {tuple(one["by"]): one for one in position_curves(frame, Choices(paths=[str(root)]))}
    assert len(figures) == 2 * len(HEADINGS)  # in the references, and in the system's own answers
    headings = {name: heading.replace("\n", " ") for name, heading in HEADINGS.items()}
    found = figures["sums", "the references", headings["forward_kl"]]
    assert found["positions"] == [["1", "n 32"], ["2", "n 32"], ["3–4", "n 60"], ["5–8", "n 40"]]
    line = next(one["curve"] for one in found["lines"] if frame.arms[one["arm"]].values["objective"] == "fkl")
    assert line["x"] == [0, 1, 2, 3]
    assert line["y"] == pytest.approx([0.24, 0.48, 0.72, 0.96])
    assert all(low < mean < high for low, mean, high in zip(line["low"], line["y"], line["high"], strict=True))
    assert found["command"].endswith("--tables positions")
    own = figures["sums", "the system's own answers, drawn at temperature 1", headings["reverse_kl"]]
    assert [len(one["curve"]["x"]) for one in own["lines"]] == [2, 2]
    assert content(frame, Choices())["positions"] == position_curves(frame, Choices())


def test_an_arm_without_some_positions_has_points_at_the_others(tmp_path: Path) -> None:
    write(write_run(tmp_path, "fkl"), 0.2)
    other = write_run(tmp_path, "rkl")
    other.write_positions(positions_csv([row(one, 0.5) for one in (BINS[0], BINS[3])]))
    read = frame_of(read_jobs(tmp_path))
    found = position_curves(read, Choices())[0]
    by_arm = {read.arms[one["arm"]].values["objective"]: one["curve"] for one in found["lines"]}
    assert by_arm["rkl"] == {"x": [0, 3], "y": [0.5, 2.0]}  # of one seed: no interval
    assert by_arm["fkl"]["x"] == [0, 1, 2, 3]


def test_of_too_many_runs_the_page_names_the_command(frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_out(frame) == []
    monkeypatch.setattr(page_positions, "MOST_TESTED", 5)  # of six
    assert position_curves(frame, Choices()) == []
    assert left_out(frame) == [
        "Curves by position are not on the page: there are more than 5 runs; they are printed by python -m kd.reports "
        "PATH --tables positions."
    ]


def test_rows_for_w_and_b_are_of_the_trained_student_on_its_own_skill(root: Path) -> None:
    """Seed 1 of fkl: level 0.22, twice that in its own answers, of which two positions were read."""
    found = by_position(next(root.glob("sums-fkl-s1-*")), "sums")
    assert [one[POSITION] for one in found] == [1, 2, 3, 5]
    assert [one["positions/references/forward_kl"] for one in found] == pytest.approx([0.22, 0.44, 0.66, 0.88])
    own = [one["positions/own/reverse_kl"] for one in found[:2]]
    assert own == pytest.approx([0.88, 1.76])
    assert not any(name.startswith("positions/own") for one in found[2:] for name in one)
