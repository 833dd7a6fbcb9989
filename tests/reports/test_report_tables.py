"""The tables of `python -m kd.reports`, of run folders as the program writes them.

Run: python -m pytest tests/reports/test_report_tables.py
"""

import csv
import hashlib
import io
import json
import random
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from kd.intervals import over_seeds
from kd.reports.frame import IDENTITY, Frame, frame_of
from kd.reports.grid import Cell, Grid
from kd.reports.paired import beside, chosen, item_table
from kd.reports.render import latex, markdown, rendered, terminal
from kd.reports.runs import Job, read_jobs
from kd.reports.settings import ABSENT, TRAINED_ON, settings_of
from kd.reports.sweep import Choices, tables_of
from kd.reports.table import run_grid
from kd.runs.composed import _section, read_config
from tests.reports.folders import DECIDED, ITEMS, WIN_RATE, config, write_run
from tests.reports.test_reports import program


def frame(*paths: Path) -> Frame:
    return frame_of([job for path in paths for job in read_jobs(path)])


def table(found: Frame, name: str, **choices: Any) -> Grid:
    return tables_of(found, Choices(tables=[name], **choices))[0]


def shown(grid: Grid, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(terminal(grid, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def by_first(grid: Grid) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in grid.rows}


def test_a_baseline_s_values_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    for lr in (0.001, 0.01):
        write_run(tmp_path, "fkl", right=10 * lr, sections={"optim": {"steps": 40, "lr": lr}})
    found = frame(tmp_path)
    for text in ("optim.lr=0.001", "optim.lr=1e-3", "optim.lr=1.0e-03", "optim.lr=.001"):
        grid = table(found, "differences", baseline=text)
        assert [row[0] for row in grid.rows] == ["0.01"], text
    with pytest.raises(ValueError, match=r"no run has these settings; there are optim.lr: 0.001, 0.01"):
        table(found, "differences", baseline="optim.lr=2e-3")


# --- the settings that tell runs apart ---


def job(overrides: dict[str, str] | None = None, **sections: Any) -> Job:
    """A job with a composed config: its terms, and whole sections."""
    return Job("0", "done", overrides or {}, config=config(**sections))


def test_runs_are_distinguished_by_their_config_not_by_the_spelling_of_their_overrides() -> None:
    """The default spelled out, another name, root and seed are no difference; a value that is not spelled is one."""
    spelled = job({"optim.lr": "1e-3", "objective": "fkl"})
    other = {**config(seed=2), "name": "mine", "run": {"root": "elsewhere"}}
    assert settings_of([spelled, Job("1", "done", {}, config=other)]).columns == []
    found = settings_of([spelled, job(optim={"steps": 40, "lr": 0.01})])
    assert found.columns == ["optim.lr"]
    assert [values["optim.lr"] for values in found.values] == ["0.001", "0.01"]


def test_the_hyperparameters_of_another_loss_are_no_difference() -> None:
    found = settings_of([job(objective="fkl"), job(objective="jsd"), job(objective="fkl+sft")])
    assert found.columns == ["objective"]
    assert [values["objective"] for values in found.values] == ["fkl", "jsd", "fkl+sft"]
    assert found.along == {}
    jsd = config("jsd")["objective"]
    jsd["jsd"]["loss"]["beta"] = 0.9
    found = settings_of(
        [job(objective="fkl"), job(objective="jsd"), Job("1", "done", config=config() | {"objective": jsd})]
    )
    assert found.columns == ["objective", "objective.jsd.loss.beta"]
    assert [values["objective.jsd.loss.beta"] for values in found.values] == [ABSENT, "0.5", "0.9"]


def test_a_key_that_some_runs_lack_is_a_difference() -> None:
    found = settings_of([job(), job(optim={"steps": 40, "lr": 0.001, "clip": 1.0})])
    assert found.columns == ["optim.clip"]
    assert [values["optim.clip"] for values in found.values] == [ABSENT, "1"]


def test_sections_are_named_by_class_or_by_the_file_that_was_chosen() -> None:
    mixed = {"_target_": "kd.rollouts.mixed.Mixed", "share": 0.5}
    written = {"_target_": "kd.rollouts.on_policy.OnPolicy"}
    found = settings_of([job(), job(rollout=written)])
    assert [values["rollout"] for values in found.values] == ["offline", "on_policy"]
    found = settings_of([job(), job({"rollout": "gkd_mix"}, rollout=mixed), job(rollout=mixed)])
    assert found.columns == ["rollout"]
    assert [values["rollout"] for values in found.values] == ["offline", "gkd_mix", "gkd_mix"]


def test_what_a_method_sets_goes_along_with_it() -> None:
    found = settings_of(
        [
            job({"method": "kd"}),
            job({"method": "gkd"}, objective="jsd", rollout={"_target_": "kd.rollouts.mixed.Mixed"}),
        ]
    )
    assert found.columns == ["method"]
    assert found.along == {"method": ["objective", "rollout"]}
    asked = settings_of(
        [job({"method": "kd"}), job({"method": "gkd", "optim.lr": "0.1"}, optim={"lr": 0.1, "steps": 40})]
    )
    assert asked.columns == ["method", "optim.lr"]


def test_a_config_is_read_by_section_as_yaml_reads_it(root: Path) -> None:
    import yaml

    text = "a: 1\nb:\n- 1\n- c: [2]\n# d: 3\nd: |\n  e: 4\n\n  f\ng: {}\n'h': null\n"
    (root.parent / "config.yaml").write_text(text)
    assert read_config(root.parent) == yaml.safe_load(text)
    folder = next(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    assert read_config(folder) == yaml.safe_load((folder / "config.yaml").read_text())
    (root.parent / "config.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(ValueError, match=r"config\.yaml is torn"):
        read_config(root.parent)
    (root.parent / "config.yaml").unlink()


# --- the frame ---


def test_the_frame_has_a_row_for_each_run_skill_metric_and_system(root: Path) -> None:
    tidy = frame(root).tidy()
    assert list(tidy.columns[:5]) == ["run", "config_hash", "seed", "objective", TRAINED_ON]
    # 24 runs with two metrics of 3 systems (before, after, teacher), and sft's accuracy in the 18 runs beside it
    assert len(tidy) == 24 * 2 * 3 + 18
    row = tidy.query(
        "objective == 'fkl' and skill == 'words' and seed == 2 and system == 'after' and metric == 'accuracy'"
    )
    (folder,) = root.glob("words-fkl-s2-*")
    stored = json.loads((folder / "results.json").read_text())["scores"]["words"]["accuracy"]["after"]
    assert row[["value", "n", "low", "high"]].squeeze().to_dict() == stored


def test_the_order_of_folders_changes_nothing(root: Path) -> None:
    jobs = read_jobs(root)
    names = ("means", "pivot", "differences", "ranks", "gaps")
    expected = tables_of(frame_of(jobs), Choices(tables=names))
    for seed in range(3):
        shuffled = random.Random(seed).sample(jobs, len(jobs))
        assert tables_of(frame_of(shuffled), Choices(tables=names)) == expected


def test_a_torn_run_changes_nothing_but_the_list(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "outputs"
    shutil.copytree(root, copy)
    torn = write_run(copy, "fkl", "sums", 9)
    (torn.path / "results.json").write_text("{")
    foreign = copy / "foreign-000000000000"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("- a list\n")
    for name in ("means", "pivot", "differences", "ranks", "pareto", "gaps"):
        one, other = table(frame(root), name), table(frame(copy), name)
        assert (one.header, one.rows) == (other.header, other.rows)
    runs = table(frame(copy), "runs")
    assert len(runs.rows) == 24 + 2
    named = [note for note in runs.notes if note.startswith("Not read")]
    assert [path.name in note for path, note in zip((foreign, torn.path), named, strict=True)] == [True, True]


def test_a_copy_in_another_root_counts_once(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    both = frame(root, tmp_path / "copy")
    assert [row[:3] for row in table(both, "means").rows] == [row[:3] for row in table(frame(root), "means").rows]
    assert any(note.startswith("24 folders hold copies of other runs, which count once: ") for note in both.notes)


def test_the_run_beside_is_found_though_it_is_no_job(root: Path, tmp_path: Path) -> None:
    """As under a sweep, whose jobs are those of the user alone."""
    jobs = [job for job in read_jobs(root) if "-sft-" not in job.label]
    found = frame_of(jobs)
    assert {arm.values["objective"] for arm in found.arms} == {"fkl", "jsd", "rkl", "sft"}
    pairs = {found.arms[i].label: other.label for i, other in beside(found).items()}
    assert pairs == {"fkl": "sft", "jsd": "sft", "rkl": "sft"}
    alone = tmp_path / "alone"
    shutil.copytree(jobs[0].folder or root, alone / (jobs[0].folder or root).name)
    assert [arm.label for arm in frame(alone).arms] == [""]  # a run whose neighbour is not there


# --- pivot ---


def test_a_pivot_by_hand(root: Path) -> None:
    """Objective × skill, as is the default; a cell is the mean of three seeds with its t interval."""
    grid = table(frame(root), "pivot")
    assert list(grid.header) == ["objective", "sums\naccuracy", "words\naccuracy"]
    values = []
    for folder in sorted(root.glob("words-jsd-s*")):
        rows = list(csv.DictReader((folder / "items.csv").open()))
        right = [float(r["value"]) for r in rows if (r["system"], r["metric"]) == ("after", "accuracy")]
        values.append(sum(right) / ITEMS)
    assert len(values) == 3
    cell = by_first(grid)["jsd"][1]
    assert isinstance(cell, Cell)
    assert (cell.value, cell.low, cell.high) == pytest.approx(over_seeds(values, [ITEMS] * 3, (0.0, 1.0)))
    assert "n = 32 items." in grid.notes[0]
    assert "Seeds 1, 2, 3." in grid.notes


def test_rows_and_columns_of_a_pivot_are_any_two_settings(root: Path, tmp_path: Path) -> None:
    found = frame(root)
    turned = table(found, "pivot", pivot="skill,objective")
    plain = table(found, "pivot", pivot="objective,skill")
    assert [list(column) for column in zip(*[row[1:] for row in turned.rows], strict=True)] == [
        row[1:] for row in plain.rows
    ]
    for lr in (0.001, 0.01):
        for objective in ("fkl", "rkl"):
            write_run(tmp_path, objective, sections={"optim": {"steps": 40, "lr": lr}})
    grid = table(frame(tmp_path), "pivot", pivot="optim.lr,objective", metric="bits_per_byte")
    assert [row[0] for row in grid.rows] == ["0.001", "0.01"]
    assert "Lower is better" in grid.notes[0]
    with pytest.raises(
        ValueError, match=r"do not differ in rollout; settings in which they differ: objective, optim\.lr"
    ):
        table(frame(tmp_path), "pivot", pivot="objective,rollout")


def test_settings_beside_the_two_are_never_averaged_over(tmp_path: Path) -> None:
    for lr in (0.001, 0.01):
        for skill in ("sums", "words"):
            write_run(tmp_path, "fkl", skill, sections={"optim": {"steps": 40, "lr": lr}})
            write_run(tmp_path, "rkl", skill, sections={"optim": {"steps": 40, "lr": lr}})
    grid = table(frame(tmp_path), "pivot", pivot="objective,skill")
    assert [tuple(row[:2]) for row in grid.rows] == [(name, lr) for name in ("fkl", "rkl") for lr in ("0.001", "0.01")]


def test_bold_is_only_what_the_test_holds_up(root: Path) -> None:
    """fkl, at 0.8, is above jsd, at 0.55; without it jsd is above rkl and sft; the two of 0.2 are alike."""
    grid = table(frame(root), "pivot")
    best = {row[0]: [isinstance(c, Cell) and c.best for c in row[1:]] for row in grid.rows}
    assert best == {"fkl": [True, True], "jsd": [False, False], "rkl": [False, False], "sft": [False, False]}
    jobs = [job for job in read_jobs(root) if "rkl" in job.label or "sft" in job.label]
    grid = table(frame_of(jobs), "pivot")
    assert not any(cell.best for row in grid.rows for cell in row if isinstance(cell, Cell))
    assert any("Holm's correction for 2 comparisons" in note for note in grid.notes)


# --- differences ---


def test_differences_are_those_of_the_items_and_corrected(root: Path) -> None:
    grid = table(frame(root), "differences")
    assert list(grid.header) == ["objective", TRAINED_ON, "less\nsft", "p", "n", "accuracy", "sft"]
    rows = {tuple(row[:2]): row for row in grid.rows}
    assert len(rows) == 6
    for (objective, skill), row in rows.items():
        values = {}
        for name in (objective, "sft"):
            folders = sorted(root.glob(f"{skill}-{name}-s*"))
            values[name] = [item_table(folder)[skill, "after", "accuracy"]["value"].mean() for folder in folders]
        expected = sum(values[objective]) / 3 - sum(values["sft"]) / 3
        cell = row[2]
        assert isinstance(cell, Cell)
        assert cell.value == pytest.approx(expected)
        assert cell.low is not None
        assert cell.high is not None
        assert cell.low < expected < cell.high
        assert cell.best == (objective != "rkl")
        assert row[4] == "32"
    assert any("Holm's correction: 6 comparisons" in note for note in grid.notes)
    plain = table(frame(root), "differences", correction="none")
    for row, uncorrected in zip(grid.rows, plain.rows, strict=True):
        assert row[3].value >= uncorrected[3].value  # type: ignore[attr-defined]


def test_verdicts_of_a_judge_are_paired_by_items(tmp_path: Path) -> None:
    for objective, count in (("fkl", 24), ("rkl", 8)):
        write_run(tmp_path, objective, wins=[1.0] * count + [0.0] * (32 - count))
    grid = table(frame(tmp_path), "differences", baseline="objective=rkl", metric=WIN_RATE)
    (row,) = grid.rows
    test = stats.ttest_1samp([1.0] * 16 + [0.0] * 16, 0.0)
    assert (row[1].value, row[3]) == (0.5, "32")  # type: ignore[attr-defined]
    assert row[1].low == pytest.approx(test.confidence_interval().low)  # type: ignore[attr-defined]


def test_items_without_a_verdict_in_one_run_are_left_out_and_counted(tmp_path: Path) -> None:
    """31 items, of which each run lacks the verdict on another one: 29 pairs, as scipy tests them."""
    fkl = [None, *[1.0] * 20, *[0.5] * 4, *[0.0] * 6]
    rkl = [1.0, None, *[0.0] * 19, *[1.0] * 10]
    for objective, wins in (("fkl", fkl), ("rkl", [*rkl, 1.0])):  # an item more, which fkl has no row of
        write_run(tmp_path, objective, wins=wins)
    grid = table(frame(tmp_path), "differences", baseline="objective=rkl", metric=WIN_RATE)
    pairs = [(a, b) for a, b in zip(fkl, rkl, strict=True) if a is not None and b is not None]
    test = stats.ttest_rel(*zip(*pairs, strict=True))
    (row,) = grid.rows
    assert row[1].value == pytest.approx(sum(a - b for a, b in pairs) / 29)  # type: ignore[attr-defined]
    assert (row[2].value, row[3]) == (pytest.approx(test.pvalue), "29")  # type: ignore[attr-defined]
    assert "3 items without a value in one of the runs (as a judge's verdict) are in no difference." in grid.notes


def test_of_decided_pairs_the_share_of_wins_is_compared(tmp_path: Path) -> None:
    """16 of 24 decided pairs against 8 of 24: ties are in neither share, and no reason to pair fewer items."""
    write_run(tmp_path, "fkl", wins=[1.0] * 16 + [0.0] * 8 + [0.5] * 8)
    write_run(tmp_path, "rkl", wins=[0.5] * 8 + [0.0] * 16 + [1.0] * 8)
    (row,) = table(frame(tmp_path), "differences", baseline="objective=rkl", metric=DECIDED).rows
    assert row[1].value == pytest.approx(16 / 24 - 8 / 24)  # type: ignore[attr-defined]
    assert row[3] == "32"
    # (a - r b) / mean(b) by item: fkl wins, losses, ties 4/9, -8/9, 0 beside 2/3; rkl 8/9, -4/9, 0 beside 1/3
    fkl = [4 / 9] * 16 + [-8 / 9] * 8 + [0.0] * 8
    rkl = [0.0] * 8 + [-4 / 9] * 16 + [8 / 9] * 8
    spread = stats.tstd([1 / 3 + a - b for a, b in zip(fkl, rkl, strict=True)]) / 32**0.5
    half = stats.t.ppf(0.975, 31) * spread
    assert (row[1].low, row[1].high) == pytest.approx((1 / 3 - half, 1 / 3 + half))  # type: ignore[attr-defined]


def test_ties_alone_have_no_share_of_wins(tmp_path: Path) -> None:
    write_run(tmp_path, "fkl", wins=[1.0] * 4)
    write_run(tmp_path, "rkl", wins=[0.5] * 4)
    with pytest.raises(ValueError, match="differences needs a baseline"):
        table(frame(tmp_path), "differences", baseline="objective=rkl", metric=DECIDED)


def test_a_baseline_is_chosen_by_its_settings(root: Path) -> None:
    grid = table(frame(root), "differences", baseline="objective=jsd", metric="bits_per_byte")
    assert {row[0] for row in grid.rows} == {"fkl", "rkl", "sft"}
    assert any("Lower is better" in note for note in grid.notes)
    ratio = next(row for row in grid.rows if row[:2] == ["fkl", "sums"])
    tables = [
        [item_table(folder)["sums", "after", "bits_per_byte"] for folder in sorted(root.glob(f"sums-{name}-s*"))]
        for name in ("fkl", "jsd")
    ]
    sums = [[[json.loads(text) for text in one["statistics"]] for one in of_arm] for of_arm in tables]
    means = [sum(sum(a for a, _ in one) / sum(b for _, b in one) for one in of_arm) / 3 for of_arm in sums]
    assert ratio[2].value == pytest.approx(means[0] - means[1])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no run has these settings; there are objective: fkl, jsd, rkl, sft"):
        table(frame(root), "differences", baseline="objective=tvd")
    with pytest.raises(ValueError, match="give it as KEY=VALUE"):
        table(frame(root), "differences", baseline="sft")


def test_an_arm_is_compared_with_the_baseline_that_is_most_alike(tmp_path: Path) -> None:
    for lr in (0.001, 0.01):
        for objective in ("fkl", "sft"):
            write_run(tmp_path, objective, sections={"optim": {"steps": 40, "lr": lr}})
    found = frame(tmp_path)
    others = chosen(found, {"objective": "sft"})
    assert {found.arms[i].values["optim.lr"]: other.values["optim.lr"] for i, other in others.items()} == {
        "0.001": "0.001",
        "0.01": "0.01",
    }
    write_run(tmp_path, "fkl", sections={"optim": {"steps": 40, "lr": 0.1}})
    with pytest.raises(ValueError, match=r"2 arms fit objective=fkl, optim\.lr=0\.1 alike; name more settings"):
        chosen(frame(tmp_path), {"objective": "sft"})


def test_items_that_were_changed_are_named(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "outputs"
    shutil.copytree(root, copy)
    (folder,) = copy.glob("sums-fkl-s1-*")
    path = folder / "items.csv"
    path.write_text(path.read_text().replace("1.0", "0.0", 1))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} was changed or damaged"):
        table(frame(copy), "differences")


# --- further tables ---


def test_ranks_gaps_fronts_and_answers(root: Path) -> None:
    found = frame(root)
    ranks = table(found, "ranks")
    assert [row[0] for row in ranks.rows][:2] == ["fkl", "jsd"]
    assert ranks.rows[0][1] == "1.00"
    gaps = table(found, "gaps")
    means = by_first(table(found, "pivot"))
    for name, cells in by_first(gaps).items():
        assert [c.value for c in cells] == pytest.approx([c.value / 0.9 for c in means[name]])  # type: ignore[attr-defined]
    pareto = table(found, "pareto")
    seconds = {row[0]: row[-1] for row in pareto.rows}
    assert seconds == {"fkl": "2.0 *", "jsd": "3.0", "rkl": "2.5", "sft": "2.0"}  # fkl: as cheap as sft, and better
    answers = table(found, "samples", samples=2)
    assert list(answers.header)[2:-1] == ["teacher", "sft", "before", "after"]
    assert "32 items of sums-fkl-s1" in answers.notes[0]
    (first,) = root.glob("sums-fkl-s1-*")
    rows = [json.loads(line) for line in (first / "samples.jsonl").read_text().splitlines()]
    right = {system: {r["id"] for r in rows if r["system"] == system and r["score"]} for system in ("before", "after")}
    gained, lost = len(right["after"] - right["before"]), len(right["before"] - right["after"])
    assert f"against the student before: {gained} gained, {lost} lost" in answers.notes[0]
    assert [row[-1] for row in answers.rows] == ["0.00 → 1.00"] * 2


def test_runs_of_other_data_are_not_ranked_together(tmp_path: Path) -> None:
    """fkl is better on the old items of `sums`, rkl on the new ones and on `words`: ranks 1 2 2 and 2 1 1."""
    rights = {("sums", "older"): (0.8, 0.2), ("sums", "newer"): (0.2, 0.8), ("words", ""): (0.2, 0.8)}
    for (skill, data), pair in rights.items():
        for objective, right in zip(("fkl", "rkl"), pair, strict=True):
            write_run(tmp_path, objective, skill, right=right, data=data)
    found = frame(tmp_path)
    assert IDENTITY in found.columns
    grid = table(found, "ranks")
    assert [row[:2] for row in grid.rows] == [["rkl", "1.33"], ["fkl", "1.67"]]
    assert "over 3 skills (sums (items newer), sums (items older), words)" in grid.notes[0]
    others = {
        arm.items: other.items for i, other in chosen(found, {"objective": "rkl"}).items() for arm in [found.arms[i]]
    }
    assert others == {"older": "older", "newer": "newer", "words": "words"}
    best = [row for row in table(found, "pivot").rows if any(isinstance(c, Cell) and c.best for c in row)]
    assert len(best) == 3  # one on each data set
    front = next(g for g in tables_of(found, Choices(tables=["pareto"])) if g.title.startswith("sums"))
    assert sum("*" in row[-1] for row in front.rows) == 2


def test_runs_of_one_setting_and_several_models_are_left_out_of_ranks(tmp_path: Path) -> None:
    for skill in ("sums", "words"):
        for objective in ("fkl", "rkl", "jsd"):
            write_run(tmp_path, objective, skill)
    write_run(tmp_path, "fkl", "sums", sections={"run": {"root": "elsewhere"}}, data="sums")
    grid = table(frame(tmp_path), "ranks")
    assert sorted(row[0] for row in grid.rows) == ["jsd", "rkl"]
    assert "Left out, as runs of the same settings and items differ in models or versions: fkl." in grid.notes


def test_many_skills_are_rows(tmp_path: Path) -> None:
    """Each with its own metric; the best objective of a row is bold; nothing is too wide for 80 columns."""
    skills = ["boolq", "chain_sum", "factual_summaries", "gsm_symbolic", "translation_de", "xsum"]
    for i, skill in enumerate(skills):
        for objective, right in (("fkl", 0.9), ("rkl", 0.1)):
            write_run(tmp_path, objective, skill, right=right, headline=("rouge_l", "exact_match", "accuracy")[i % 3])
    grids = {grid.title: grid for grid in tables_of(frame(tmp_path), Choices(paths=["outputs"]))}
    runs, scores = grids["12 jobs"], grids["Scores by trained on × objective"]
    assert scores.header == ["trained on", "metric", "fkl", "rkl"]
    assert [row[:2] for row in scores.rows[:3]] == [
        ["boolq", "rouge_l"],
        ["chain_sum", "exact_match"],
        ["factual_summaries", "accuracy"],
    ]
    assert all(row[2].best and not row[3].best for row in scores.rows)  # type: ignore[attr-defined]
    assert any(note.startswith("Bold: better than every other of its row") for note in scores.notes)
    text = shown(scores)
    assert text.count("trained on") == 2  # the title and one header
    assert max(map(len, text.splitlines())) <= 80
    start = runs.header.index("score")
    assert runs.header[start : start + 3] == ["score", "gap closed", "metric"]
    (row,) = (row for row in runs.rows if row[0].startswith("xsum-fkl"))
    assert row[start + 2] == "accuracy"
    (folder,) = tmp_path.glob("xsum-fkl-*")
    stored = json.loads((folder / "results.json").read_text())["scores"]["xsum"]["accuracy"]["after"]["value"]
    assert row[start].value == stored  # type: ignore[attr-defined]


def test_a_table_that_the_runs_cannot_fill_is_refused(root: Path) -> None:
    for name in ("augmentation", "transfer"):
        with pytest.raises(ValueError, match=f"--tables {name} needs"):
            table(frame(root), name)
    with pytest.raises(ValueError, match="--tables medians: there are runs, means"):
        table(frame(root), "medians")


def test_augmentation_is_accounted_for(tmp_path: Path) -> None:
    write_run(tmp_path, "sft")
    stages = {"stages": {"labeling": {"samples": 1}, "verified": {}}}
    write_run(tmp_path, "sft", sections={"augmentation": stages}, spent={"teacher_tokens": 500, "generated_tokens": 70})
    rows = by_first(table(frame(tmp_path), "augmentation"))
    assert rows["labeling+verified"][:9] == ["labeling, verified", "64", "0", "0", "–", "–", "–", "500", "70"]
    assert rows["none"][0] == "none"


def test_the_quality_of_elicited_records_is_shown(tmp_path: Path) -> None:
    """100 records, of which a first stage dropped 20 and a second 50; its responses' score is a mean over seeds."""
    for seed, right in ((1, 0.5), (2, 0.75)):
        write_run(tmp_path, "sft", seed=seed)
        stages = {"stages": {"labeling": {}, "short": {}}}
        folder = write_run(tmp_path, "sft", seed=seed, sections={"augmentation": stages})
        page = {**folder.results(), "elicitation": elicitation(right)}
        (folder.path / "DONE").write_text(folder.config_hash)  # as if they had been written so
        folder.write_json("results.json", page)
    rows = by_first(table(frame(tmp_path), "augmentation"))
    assert rows["labeling+short"][4:7] == ["0.300", "0.625", "0.200"]


def elicitation(right: float) -> dict[str, Any]:
    account = {"artifact": "a", "left_out": 0, "dropped": {}, "prompts": 0, "models": {}, "seed": 1, "cost": {}}
    first = {**account, "name": "labeling", "given": 100, "kept": 80, "quality": {"score": 0.1, "unique": 1.0}}
    second = {**account, "name": "short", "given": 80, "kept": 30, "quality": {"score": right, "unique": 0.2}}
    spent = dict.fromkeys(("teacher_tokens", "generated_tokens", "student_flops", "judge_flops", "seconds"), 0)
    return {"records": 30, "responses": 30, "left_out": 0, **spent, "stages": [first, second]}


def test_a_student_is_called_what_it_is(tmp_path: Path) -> None:
    def rows(objective: str, **sections: Any) -> list[str]:
        folder = write_run(tmp_path, objective, sections=sections)
        return [row[0] for row in run_grid(folder.results(), config=read_config(folder.path)).rows]

    assert "student, distilled" in rows("fkl")
    assert "student, sft" in rows("sft")
    assert "student, distilled" not in rows("sft")
    assert "student, dpo" in rows("dpo", teacher={"_target_": None})
    labels = {"augmentation": {"stages": {"labeling": {}}}}
    assert "student, distilled" in rows("sft", **labels)  # SeqKD: on the teacher's text


# --- formats ---


def test_every_line_fits_80_columns(root: Path) -> None:
    for name in ("runs", "means", "pivot", "differences", "ranks", "pareto", "gaps", "samples"):
        lines = shown(table(frame(root), name, paths=["outputs"])).splitlines()
        assert max(map(len, lines)) <= 80, name
        assert any(line.startswith("Made by: python -m kd.reports outputs --tables") for line in lines)


def test_a_wide_table_is_stacked_below_its_labels() -> None:
    header = ["name", *(f"column {i}" for i in range(12))]
    text = shown(Grid("Wide", header, [[f"row {k}", *(f"{k}.{i} [0, 1]" for i in range(12))] for k in range(2)]))
    assert [text.count(f"row {k}") for k in range(2)] == [3, 3]
    assert all(text.count(f"{k}.{i} [0, 1]") == 1 for k in range(2) for i in range(12))


def test_a_column_that_shows_nothing_apart_is_one_line() -> None:
    grid = Grid("T", ["name", "n", "m"], [[str(i), "32", str(i)] for i in range(3)], folds=True)
    assert "In all rows: n 32." in shown(grid)
    assert shown(grid).count("32") == 1


def test_latex_escapes_and_marks() -> None:
    rows = [["a_b & 50 %", Cell.of({"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}, best=True)], ["c", Cell("–")]]
    text = latex(Grid("T #1", ["x_1", "score"], rows, ["A note."], command="python -m kd.reports x"))
    lines = text.splitlines()
    assert r"a\_b \& 50 \% & \textbf{0.500} {\scriptsize [0.250, 0.750]} \\" in lines
    assert r"c & -- \\" in lines
    assert r"\begin{tabular}{lr}" in lines
    assert [lines.index(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [4, 6, 9]
    assert lines[-2:] == ["% A note.", "% python -m kd.reports x"] or lines[-1] == "% Made by: python -m kd.reports x"
    assert text.count("{") == text.count("}")


def test_numbers_survive_csv_and_json(root: Path) -> None:
    grid = table(frame(root), "pivot", paths=["outputs"])
    rows = list(csv.DictReader(io.StringIO(rendered([grid], "csv"))))
    (page,) = json.loads(rendered([grid], "json"))
    for row, line, entry in zip(grid.rows, rows, page["rows"], strict=True):
        cell = row[1]
        assert isinstance(cell, Cell)
        assert line["objective"] == entry["objective"] == row[0]
        found = (cell.value, cell.low, cell.high, cell.n)
        assert tuple(float(line[f"sums accuracy{end}"]) for end in ("", " low", " high", " n")) == found
        assert tuple(entry["sums accuracy"][key] for key in ("value", "low", "high", "n")) == found
        assert entry["sums accuracy"]["best"] == cell.best
    assert page["command"] == "python -m kd.reports outputs --tables pivot"
    assert "**" in markdown(grid)


def test_the_command_under_a_table_makes_it(root: Path) -> None:
    first = program(root, "--tables", "differences", "--baseline", "objective=jsd", "--format", "markdown")
    assert first.returncode == 0, first.stderr
    (command,) = re.findall(r"^    python -m kd\.reports (.*)$", first.stdout, flags=re.MULTILINE)
    again = program(*shlex.split(command), "--format", "markdown")
    assert again.stdout == first.stdout


def test_csv_is_the_tidy_frame(root: Path) -> None:
    done = program(root, "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 24 * 2 * 3 + 18
    assert {row["objective"] for row in rows} == {"fkl", "jsd", "rkl", "sft"}


def test_ten_thousand_runs_take_seconds(root: Path, tmp_path: Path) -> None:
    """A tenth of them here: the tables of 1000 runs in 5 s of this process, and a section of YAML is read once."""
    (source,) = root.glob("sums-fkl-s1-*")
    page, text = json.loads((source / "results.json").read_text()), (source / "config.yaml").read_text()
    for number in range(1000):
        folder = tmp_path / f"sums-fkl-s1-{number:012x}"
        folder.mkdir()
        family = f"{number // 20:012x}"
        stored = json.dumps({**page, "config_hash": f"{number:012x}", "seed": number % 20, "family": family})
        (folder / "results.json").write_text(stored)
        steps = text.replace("steps: 40", f"steps: {number // 20}").replace("seed: 1\n", f"seed: {number % 20}\n")
        (folder / "config.yaml").write_text(steps)
        (folder / "DONE").write_text(f"{number:012x}\n{hashlib.sha256(stored.encode()).hexdigest()}\n")
    _section.cache_clear()
    started = time.process_time()
    found = frame(tmp_path)
    assert len(table(found, "means").rows) == 50
    assert len(table(found, "runs").rows) == 1000
    assert time.process_time() - started < 5
    assert _section.cache_info().currsize < 120  # of 12 sections in 1000 files: 50 of optim, 21 of seed, and the others
