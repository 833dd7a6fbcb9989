"""Folders as they come: one run, runs that measured different things, nothing, or one item; many arms; any name.

Run: python -m pytest tests/reports/test_odd_folders.py
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd.reports.comparisons.samples import read_answers
from kd.reports.figures import write_figures
from kd.reports.figures.front import fronts
from kd.reports.frame import Frame, frame_of
from kd.reports.grid import Cell, Grid
from kd.reports.latex import latex, tex
from kd.reports.render import markdown, rendered
from kd.reports.runs import read_jobs
from kd.reports.sweep import TABLES, Choices, tables_of
from kd.reports.table import run_grid
from kd.runs.folder import RunFolder
from tests.reports import folders
from tests.reports.folders import logged, write_grid, write_run
from tests.reports.test_by_position import write as write_positions
from tests.reports.test_report_tables import shown, table

Change = Callable[[dict[str, Any]], None]


def changed(folder: RunFolder, change: Change) -> RunFolder:
    """The run with other results, as if they had been written so."""
    page = json.loads((folder.path / "results.json").read_text())
    change(page)
    (folder.path / "DONE").write_text(folder.config_hash)
    folder.write_json("results.json", page)
    return folder


def frame(root: Path) -> Frame:
    return frame_of(read_jobs(root))


def all_tables(found: Frame) -> list[Grid]:
    """Every table that the runs can fill; a table that they cannot is refused in one sentence."""
    grids = []
    for name in TABLES:
        if not TABLES[name](found, Choices()):
            with pytest.raises(ValueError, match=f"^--tables {name} needs "):
                tables_of(found, Choices(tables=[name]))
        else:
            grids += tables_of(found, Choices(tables=[name]))
    return grids


def check(root: Path, figures: Path) -> list[Grid]:
    """All tables, in all formats, and all figures can be made; tables fit 80 columns."""
    found = frame(root)
    grids = [*tables_of(found, Choices()), *all_tables(found)]
    for grid in grids:
        assert max(map(len, shown(grid).splitlines())) <= 80, grid.title
        assert not re.search(r"\bnan\b|\binf\b|None", shown(grid)), grid.title
        json.loads(rendered([grid], "json"), parse_constant=pytest.fail)
        for form in ("markdown", "latex", "csv"):
            rendered([grid], form)
    write_figures(found, Choices(), figures, ["svg"])
    return grids


def values(grid: Grid, column: str) -> list[Any]:
    place = next(i for i, name in enumerate(grid.header) if name.replace("\n", " ") == column)
    return [getattr(row[place], "value", None) for row in grid.rows]


# --- few, and nothing ---


def test_one_run_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "outputs", metrics=logged(1, 0.5))
    grids = check(tmp_path / "outputs", tmp_path)
    assert "all runs" in (tmp_path / "curves-sums.svg").read_text()  # its name in the legend
    assert grids[0].title == "1 jobs"


def nothing(page: dict[str, Any]) -> None:
    page["scores"], page["gap_closed"], page["metrics"] = {"sums": {}}, {"sums": {}}, {}


def test_runs_that_measured_nothing(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for objective in ("fkl", "rkl"):
        for seed in (1, 2):
            for steps in (10, 20):
                sections = {"optim": {"steps": steps, "lr": 0.001}}
                changed(write_run(root, objective, seed=seed, sections=sections), nothing)
    assert "pivot" not in {grid.title for grid in check(root, tmp_path)}
    with pytest.raises(ValueError, match=r"--tables pivot needs .* and a score"):
        tables_of(frame(root), Choices(tables=["pivot"]))


def test_the_table_of_a_run_without_evaluation_is_one_sentence(tmp_path: Path) -> None:
    changed(write_run(tmp_path), nothing)
    (job,) = read_jobs(tmp_path)
    grid = run_grid(job.results or {}, "Held-out scores")
    assert (grid.header, grid.rows) == ([], [])
    assert shown(grid).split() == ["Held-out", "scores", "Nothing", "was", "evaluated", "(evaluation=none)."]
    assert rendered([grid], "markdown") == "### Held-out scores\n\n\nNothing was evaluated (evaluation=none).\n"


def test_arms_of_the_same_cost_have_no_figure_of_it(tmp_path: Path) -> None:
    for objective in ("fkl", "rkl"):
        write_run(tmp_path / "same", objective)
        write_run(tmp_path / "other", objective, spent={"seconds": {"fkl": 1.0, "rkl": 2.0}[objective]})
    assert fronts(frame(tmp_path / "same"), Choices()) == []
    (drawn,) = fronts(frame(tmp_path / "other"), Choices())
    assert [ax.get_xlabel() for ax in drawn.figure.axes if ax.get_visible()] == ["training seconds"]


@pytest.mark.long
def test_one_arm_that_measured_nothing_hides_no_other(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    write_grid(root, seeds=(1, 2))
    for seed in (1, 2):
        changed(write_run(root, "akl", seed=seed), nothing)  # the first in the order of arms
    check(root, tmp_path)
    [grid] = tables_of(frame(root), Choices(tables=["pivot"]))
    assert grid.rows[0][0] == "akl"
    assert getattr(grid.rows[0][1], "value", None) is None
    assert grid.header[1] == "sums\naccuracy"


def test_one_item_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ITEMS", 1)
    write_grid(tmp_path / "outputs", seeds=(1, 2, 3))
    for grid in check(tmp_path / "outputs", tmp_path):
        assert not any(cell.best for row in grid.rows for cell in row if isinstance(cell, Cell)), grid.title


# --- unequal ---


def test_a_seed_that_one_arm_lacks_is_in_no_number_of_the_difference(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for seed, right in ((1, 0.2), (2, 0.3), (3, 0.9)):
        beside = write_run(root, "sft", seed=seed, right=0.2)
        if seed < 3:
            write_run(root, "fkl", seed=seed, right=right, baseline=beside)
        write_run(root, "rkl", seed=seed, right=0.5, baseline=beside)
    check(root, tmp_path)
    grid = table(frame(root), "differences", metric="accuracy")
    for less, score, base in zip(*(values(grid, name) for name in ("less sft", "accuracy", "sft")), strict=True):
        assert less == pytest.approx(score - base, abs=1e-12)
    assert "Scores and differences are over the seeds that an arm and its baseline both have." in grid.notes


def test_a_score_that_is_missing_is_a_dash_and_no_zero(tmp_path: Path) -> None:
    root = tmp_path / "outputs"

    def missing(page: dict[str, Any]) -> None:
        page["scores"]["sums"]["accuracy"]["after"] = {"value": None, "n": 0, "low": None, "high": None}

    for objective, right in (("fkl", 0.5), ("rkl", 0.75)):
        for seed in (1, 2, 3):
            folder = write_run(root, objective, seed=seed, right=right)
            if objective == "fkl" or seed == 3:
                changed(folder, missing)
    check(root, tmp_path)
    fkl, rkl = frame(root).arms
    assert fkl.estimates("sums", "accuracy") == {}
    assert list(rkl.estimates("sums", "accuracy")) == [1, 2]
    means = table(frame(root), "means")
    assert values(means, "accuracy")[0] is None


def test_arms_of_a_skill_are_compared_by_a_metric_that_all_have(tmp_path: Path) -> None:
    """One arm answered nothing: its headline is bits per byte, which is no number beside the accuracy of the other."""
    root = tmp_path / "outputs"

    def unanswered(page: dict[str, Any]) -> None:
        del page["scores"]["sums"]["accuracy"], page["gap_closed"]["sums"]["accuracy"]

    for objective in ("fkl", "rkl"):
        for seed in (1, 2):
            for steps in (10, 20):
                sections = {"optim": {"steps": steps, "lr": 0.001}}
                folder = write_run(root, objective, seed=seed, sections=sections)
                if objective == "rkl":
                    changed(folder, unanswered)
    check(root, tmp_path)
    found = frame(root)
    bits = [np.mean([one["value"] for one in arm.estimates("sums", "bits_per_byte").values()]) for arm in found.arms]
    pareto = table(found, "pareto")
    assert values(pareto, "bits per byte") == pytest.approx(bits)
    pivot = table(found, "pivot", pivot="objective,optim.steps")
    assert [cell.value for row in pivot.rows for cell in row[1:]] == pytest.approx(bits)  # type: ignore[attr-defined]


def test_constant_scores(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for objective in ("fkl", "rkl"):
        for skill in ("sums", "words"):
            for seed in (1, 2, 3):
                write_run(root, objective, skill, seed, right=0.0)
    for grid in check(root, tmp_path):
        assert not any(cell.best for row in grid.rows for cell in row if isinstance(cell, Cell)), grid.title
    assert all("0.00 [0.00, " in cell for row in table(frame(root), "pivot").rows for cell in row[1:])


# --- skills of different metrics ---


def errors(page: dict[str, Any]) -> None:
    """The skill `words` counts errors: lower is better."""
    scores, facts = page["scores"]["words"], page["metrics"]
    systems = scores.pop("accuracy")
    page["scores"]["words"] = {
        "errors": {
            name: one and {**one, "value": one["value"] * 9, "low": None, "high": None} for name, one in systems.items()
        },
        **scores,
    }
    facts["errors"] = {**facts["accuracy"], "heading": "errors", "high": 9.0, "higher_is_better": False}
    page["gap_closed"]["words"] = {}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed") / "outputs"
    for skill in ("sums", "words"):
        for objective, right in (("fkl", 0.9), ("rkl", 0.1)):
            for seed in (1, 2, 3):
                folder = write_run(root, objective, skill, seed, right=right)
                if skill == "words":
                    changed(folder, errors)
    return root


@pytest.mark.parametrize("pivot", ["objective,skill", "skill,objective"])
def test_directions_are_those_of_each_skill(mixed: Path, pivot: str, tmp_path: Path) -> None:
    """fkl has more right answers in `sums`, and more errors in `words`, where rkl is the better one."""
    check(mixed, tmp_path)
    found = frame(mixed)
    grid = table(found, "pivot", pivot=pivot)
    rows = {row[0]: dict(zip([name.split("\n")[0] for name in grid.header], row, strict=True)) for row in grid.rows}
    turned = pivot.startswith("skill")
    of = {(o, s): rows[s][o] if turned else rows[o][s] for o in ("fkl", "rkl") for s in ("sums", "words")}
    assert of["fkl", "sums"].best  # type: ignore[attr-defined]
    assert not of["rkl", "sums"].best  # type: ignore[attr-defined]
    assert not of["fkl", "words"].best  # type: ignore[attr-defined]
    assert "Higher is better, but of errors lower" in grid.notes[0]
    assert any(f"Bold: better than every other of its {'row' if turned else 'column'}" in note for note in grid.notes)


def test_fewer_errors_are_gained_items(tmp_path: Path) -> None:
    folder = changed(write_run(tmp_path, skill="words"), errors)
    rows = [
        {
            "system": system,
            "skill": "words",
            "id": f"{i}",
            "prompt": "?",
            "reference": "a",
            "sample": 0,
            "response": "a\u2028b\x85c",
            "score": score,
        }
        for system, scores in (("before", (3, 3, 1)), ("after", (1, 2, 4)))
        for i, score in enumerate(scores)
    ]
    folder.write_samples(rows)
    assert {len(systems) for systems in read_answers(folder.path).values()} == {2}
    [grid] = tables_of(frame(tmp_path), Choices(tables=["samples"]))
    assert "2 gained, 1 lost, 0 as before" in grid.notes[0]


# --- many, and wide ---


@pytest.mark.long
def test_a_hundred_arms(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for i in range(100):
        metrics = "step,split,name,value\n" + "".join(f"{step},train,loss,{i}\n" for step in (0, 10))
        sections = {"optim": {"steps": 40, "lr": 0.001 * (i + 1)}}
        write_positions(write_run(root, right=i / 100, sections=sections, metrics=metrics), 0.1)
    found = frame(root)
    assert [arm.values["optim.lr"] for arm in found.arms[8:11]] == ["0.009", "0.01", "0.011"]  # by size
    for grid in tables_of(found, Choices()):
        assert max(map(len, shown(grid).splitlines())) <= 80
    for path in write_figures(found, Choices(), tmp_path / "figures", ["svg"]):
        width, height = (float(re.search(rf'{side}="([\d.]+)pt"', path.read_text())[1]) for side in ("width", "height"))  # type: ignore[index]
        assert width < 500
        assert height < 2000, path.name
        assert "The first 28 of 100 arms." in path.read_text()


def test_rows_that_many_settings_name_fit_80_columns() -> None:
    header = ["objective", "trained on", "optim.lr", "objective.jsd.loss.beta", "student.model.architecture", "score"]
    names = ["generalized_jsd+sft", "gsm_symbolic", "0.0005", "0.9", "a student with a long name"]
    grid = Grid(
        "T", header, [[*names, Cell.of({"value": i / 7, "low": 0, "high": 1, "n": 4})] for i in range(3)], labels=5
    )
    text = shown(grid)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("objective.jsd.loss.beta 0.9") == 3
    assert text.count("optim.lr 0.0005") == 3
    assert "0.286 [0.00, 1.00]" in text


def test_columns_of_one_heading_stay_apart_in_files() -> None:
    grid = Grid("T", ["name", "accuracy", "accuracy"], [["a", Cell.number(0.25), Cell.number(0.75)]])
    (page,) = json.loads(rendered([grid], "json"))
    assert page["columns"] == ["name", "accuracy", "accuracy (2)"]
    assert [page["rows"][0][name]["value"] for name in page["columns"][1:]] == [0.25, 0.75]
    assert rendered([grid], "csv").splitlines()[0] == "name,accuracy,accuracy (2)"


def test_each_gap_of_a_table_of_runs_is_named_by_its_metric(tmp_path: Path) -> None:
    write_run(tmp_path)
    grid = table(frame(tmp_path), "runs")
    assert [name.replace("\n", " ") for name in grid.header if name.startswith("gap")] == [
        "gap closed, accuracy",
        "gap closed, bits per byte",
    ]


def test_what_a_terminal_would_obey_and_markdown_would_hide_is_shown() -> None:
    grid = Grid("T", ["answer"], [["\x1b[31mred\r\x07<think>a|b</think>\u2028<0.001"]])
    text = shown(grid)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028]", text)
    assert r"\x1b[31mred\x0d\x07<think>" in text
    (line,) = [line for line in markdown(grid).splitlines() if "red" in line]
    assert r"&lt;think>a\|b&lt;/think>\x2028<0.001" in line


# --- LaTeX ---

NAMES = [
    *("spell_backward", "50 %", "a & b", "#1 $x$", "~home^2", r"C:\temp", "{x}", "[sft,fkl]", "*", "<think>", "a|b"),
    *(
        "naïve Ångström č ő ş",
        "α=0.1, Λ, ς, ϕ",
        "“quoted” ‘x’ — –",
        "日本",
        "🙂",
        "tab\there",
        "\x1b[0m",
        "x → y ≥ 3 ± ∞",
    ),
    *("ﬁ", "e\u0301", "100\u00a0000", "straße Øre Łódź", "%", "\\", "--", "^", "‖"),
]


def unescaped(text: str) -> list[str]:
    """The signs of LaTeX that stand for themselves in no text, where no backslash precedes them."""
    return re.findall(r"(?<!\\)[#%_]|[^\x00-\x7f]", re.sub(r"\$[^$]*\$", "", text))


def test_every_name_is_escaped_and_braces_are_balanced() -> None:
    for name in NAMES:
        text = tex(name)
        assert unescaped(text) == [], name
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}"), name
        assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0, name
    assert tex("naïve α 日 é") == r"na\"{i}ve $\alpha$ [U+65E5] \'{e}"
    assert tex("Α\u0301") == r"[U+0386]"


def odd_grids() -> list[Grid]:
    scored = Cell.of({"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}, best=True)
    named = [Grid(name, [name, "score"], [[name, scored], [name, Cell("–")]], [name], command=name) for name in NAMES]
    return [*named, Grid("No rows", ["a_b", "c"], [])]


def test_rows_have_as_many_cells_as_the_table_has_columns() -> None:
    for grid in odd_grids():
        lines = latex(grid).splitlines()
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]*)\}", latex(grid))
        rows = [line for line in lines if line.endswith(r" \\")]
        assert len(rows) == 1 + len(grid.rows)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {len(columns)}
        assert not any(line.startswith(("[", "*")) for line in rows)


@pytest.mark.long
def test_pdflatex_compiles_every_table(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex; apt install texlive-latex-base texlive-latex-recommended has it")
    root = tmp_path / "outputs"
    write_grid(root, seeds=(1, 2))
    labels = {"augmentation": {"stages": {"labeling": {}}}}
    write_run(root, "fkl", seed=1, sections=labels)
    grids = [*all_tables(frame(root)), *odd_grids()]
    body = "\n\\clearpage\n".join(latex(grid) for grid in grids)
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "all.tex").write_text(f"{head}{body}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    assert b"Missing character" not in (tmp_path / "all.log").read_bytes()
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
