"""The page: its numbers are those of the tables, its texts are only text, and it stays small.

Run: python -m pytest tests/reports/test_html_page.py
"""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd.reports.__main__ import main
from kd.reports.comparisons.curves import logged
from kd.reports.frame import Frame, frame_of
from kd.reports.page import comparisons
from kd.reports.page.comparisons import OWN, title_of
from kd.reports.page.content import SAMPLES, content
from kd.reports.page.document import document, end_with_page, read_once
from kd.reports.page.run_details import LONGEST
from kd.reports.page.tables import curve, thinned
from kd.reports.palette import SHADES
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices, tables_of
from kd.runs.folder import config_hash
from tests.reports.folders import WIN_RATE, write_grid, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!-- \u2028 & \"'"


@pytest.fixture(scope="module")
def shown(root: Path, frame: Frame) -> dict[str, Any]:
    """The content as a browser reads it."""
    return read_back(document(content(frame, Choices(paths=[str(root)]))))


class Parts(HTMLParser):
    """The tags of a page, and the texts of its scripts, as a browser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def read_back(page: str) -> dict[str, Any]:
    parts = Parts()
    parts.feed(page)
    return json.loads(parts.scripts[0])


# --- numbers ---


def test_a_pivot_has_the_means_of_the_arms_and_the_text_of_the_table(shown: dict[str, Any], frame: Frame) -> None:
    found = shown["pivots"][0]
    assert found["by"] == ["objective", "trained on", "each skill's own"]
    (grid,) = tables_of(frame, Choices(tables=("pivot",)))
    assert [[cell[0] if isinstance(cell, list) else cell for cell in row] for row in found["rows"]] == grid.rows
    for row, arms in zip(found["rows"], found["arms"], strict=True):
        for cell, place in zip(row[1:], arms, strict=True):
            arm = frame.arms[place]
            assert row[0] == arm.values["objective"]
            values = [one["scores"][arm.skill]["accuracy"]["after"]["value"] for one in arm.results()]
            assert cell[1] == pytest.approx(np.mean(values), rel=1e-4)


def test_the_darkest_cell_of_a_column_is_its_best(shown: dict[str, Any], frame: Frame) -> None:
    """The least bits per byte, the greatest accuracy."""
    for metric, best in (("each skill's own", max), ("bits per byte", min)):
        found = next(one for one in shown["pivots"] if one["by"] == ["objective", "trained on", metric])
        for column in range(2):
            values = [row[1 + column][1] for row in found["rows"]]
            darkest = [shades[column] for shades in found["shades"]].index(len(SHADES) - 1)
            assert values[darkest] == best(values)


def test_differences_are_those_of_the_table_with_their_intervals(shown: dict[str, Any], frame: Frame) -> None:
    found = shown["differences"][0]
    (grid,) = tables_of(frame, Choices(tables=("differences",)))
    assert found["columns"][found["bars"]] == "less\nsft"
    for row, expected in zip(found["rows"], grid.rows, strict=True):
        cell, other = row[found["bars"]], expected[found["bars"]]
        assert cell[0] == other
        assert cell[1:4] == pytest.approx([other.value, other.low, other.high], rel=1e-4)  # type: ignore[union-attr]


def test_points_of_a_front_are_means_and_costs(shown: dict[str, Any], frame: Frame) -> None:
    found = next(one for one in shown["fronts"] if one["by"] == ["sums", "each skill's own", "training seconds"])
    assert {mark["front"] for mark in found["points"]} == {True, False}
    for mark in found["points"]:
        arm = frame.arms[mark["arm"]]
        assert mark["x"] == np.mean([one["budget"]["seconds"] for one in arm.results()])
        values = [one["scores"]["sums"]["accuracy"]["after"]["value"] for one in arm.results()]
        assert mark["y"] == pytest.approx(np.mean(values), rel=1e-4)
        assert "seeds 1, 2, 3" in mark["text"]
        assert "n = 32" in mark["text"]


def test_curves_are_the_means_of_what_the_seeds_logged(shown: dict[str, Any], frame: Frame) -> None:
    group = next(one for one in shown["curves"] if one["group"] == "sums")
    assert group["metrics"] == ["train/loss"]
    assert len(group["lines"]) == 4
    for line in group["lines"]:
        runs = [logged(job)["train/loss"] for job in frame.arms[line["arm"]].runs.values()]
        found = line["curves"]["train/loss"]
        assert found["x"] == [0, 10, 20, 30, 40]
        assert found["y"] == pytest.approx([np.mean([run[step] for run in runs]) for step in found["x"]], rel=1e-4)
        assert all(low < middle < high for low, middle, high in zip(*map(found.get, ("low", "y", "high")), strict=True))
        assert found["seeds"]["2"]["y"] == pytest.approx(list(runs[1].values()), rel=1e-4)


def test_the_details_of_a_run_are_its_own(shown: dict[str, Any], root: Path) -> None:
    place = next(i for i, row in enumerate(shown["runs"]["rows"]) if row[0] == "sums-fkl-s2")
    own = shown["details"][str(place)]
    table = own["tables"][0]
    after = next(row for row in table["rows"] if row[0] == "student, distilled")
    results = json.loads(next(root.glob("sums-fkl-s2-*/results.json")).read_text())
    cell = after[table["columns"].index("accuracy")]
    score = results["scores"]["sums"]["accuracy"]["after"]
    assert cell[1:5] == pytest.approx([score[key] for key in ("value", "low", "high", "n")], rel=1e-4)
    settings = dict(pair for section in own["settings"] for pair in shown["settings"][section])
    assert settings["optim.lr"] == "0.001"
    assert settings["seed"] == "2"


def test_answers_stand_side_by_side_with_what_changed(shown: dict[str, Any], root: Path) -> None:
    place = next(i for i, row in enumerate(shown["runs"]["rows"]) if row[0] == "sums-fkl-s2")
    found = shown["details"][str(place)]["answers"]
    assert found["systems"] == ["teacher", "beside it: sft", "student before", "student after"]
    rows = [json.loads(line) for line in next(root.glob("sums-fkl-s2-*/samples.jsonl")).read_text().splitlines()]
    score = {(row["system"], row["id"]): row["score"] for row in rows}
    for item in found["items"]:
        change = score["after", item["id"]] - score["before", item["id"]]
        assert item["change"] == ("gained" if change > 0 else "lost" if change < 0 else "as before")
        assert item["answers"][3][2] == score["after", item["id"]]
    assert found["items"][0]["change"] == "gained"


def test_versions_that_differ_are_named(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = write_run(tmp_path / "outputs", seed=seed)
        environment = json.loads((folder.path / "environment.json").read_text())
        environment["versions"]["torch"] = f"2.{seed}"
        folder.write_json("environment.json", environment)
    found = content(frame_of(read_once([str(tmp_path / "outputs")])), Choices())
    assert found["versions"] == ["torch: 2.1 (1 run), 2.2 (1 run)"]


# --- texts ---


def test_nothing_in_a_text_is_html(tmp_path: Path) -> None:
    """Names, settings, errors, prompts and answers: each arrives as it is, and the page has its own tags alone."""
    root = tmp_path / "outputs"
    plain = write_run(tmp_path / "plain")
    folder = write_run(root, sections={"name": "x", "teacher": {"_target_": HOSTILE}})
    answer = dict.fromkeys(("id", "prompt", "reference", "response", "verifier_error"), HOSTILE)
    folder.write_samples([{**answer, "skill": "sums", "score": 1.0, "system": name} for name in ("before", "after")])
    folder.finish(folder.results())
    failed = write_run(root, "rkl")
    (failed.path / "DONE").unlink()
    failed.fail(HOSTILE, "")
    (root / "torn <img src=x>").mkdir()
    (root / "torn <img src=x>" / "results.json").write_text("{")
    page = document(content(frame_of(read_once([str(root)])), Choices(paths=[HOSTILE])))
    parts, own = Parts(), Parts()
    parts.feed(page)
    own.feed(document(content(frame_of(read_once([str(plain.path)])), Choices())))
    assert parts.tags == own.tags
    found = json.loads(parts.scripts[0])
    assert found["paths"] == [HOSTILE]
    details = next(one for one in found["details"].values() if one.get("answers"))
    item = details["answers"]["items"][0]
    assert [item["prompt"], item["reference"], item["id"]] == [HOSTILE] * 3
    assert item["answers"][0][0] == [HOSTILE]  # in one piece, for nothing changed
    assert any(HOSTILE in problem for one in found["details"].values() for problem in one["problems"])
    assert any("torn <img src=x>" in problem for problem in found["problems"])
    assert "<" not in parts.scripts[0]


def test_the_policy_lets_in_this_script_and_this_style_alone(shown: dict[str, Any]) -> None:
    page = document(shown)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "unsafe" not in policy[1]
    assert "connect-src &#x27;none&#x27;" in policy[1]
    assert re.findall(r"(?:src|href|url)[=(][\"']?(?!#|data:)\w+", page.partition('id="content"')[0]) == []


# --- size and faults ---


def test_a_thinned_curve_keeps_its_ends_and_its_peaks() -> None:
    values = np.sin(np.arange(10_000) / 50).tolist()
    values[4321], values[77] = 9.0, -9.0
    kept = thinned(values, 100)
    assert len(kept) <= 100
    assert {0, 77, 4321, 9999} <= set(kept)
    assert kept == sorted(kept)
    found = curve(range(10_000), values, 100)
    assert max(found["y"]) == 9.0
    assert thinned(values[:100], 100) == list(range(100))
    assert curve([0, 1], [float("nan"), 1.0], 10)["y"] == [None, 1.0]


def test_what_is_not_finite_hides_no_peak() -> None:
    """A loss that is above 0, and a reward below it, keep their peaks beside steps without a number."""
    for sign in (1.0, -1.0):
        values = (sign * (2 + np.sin(np.arange(10_000) / 50))).tolist()
        values[4321], values[77] = sign * 0.5, sign * 9.0
        values[4330], values[4331], values[80] = float("nan"), float("inf"), -float("inf")
        assert {77, 4321} <= set(thinned(values, 100))


def test_a_cell_opens_its_run_where_a_metric_is_named_beside_skills(tmp_path: Path) -> None:
    for skill in ("one", "two", "three", "four", "five"):
        for objective in ("fkl", "sft"):
            write_run(tmp_path, objective, skill, headline="rouge" if skill == "two" else "accuracy")
    found = frame_of(read_jobs(tmp_path))
    first = content(found, Choices())["pivots"][0]
    assert first["columns"][1] == "metric"
    for row, places in zip(first["rows"], first["arms"], strict=True):
        for objective, place in zip(first["columns"][2:], places, strict=True):
            arm = found.arms[place]
            assert (arm.skill, arm.values["objective"]) == (row[0], objective)


def test_a_metric_that_the_first_arm_lacks_has_its_own_title(tmp_path: Path) -> None:
    write_run(tmp_path, "fkl")
    write_run(tmp_path, "rkl", wins=[1.0] * 8)
    found = frame_of(read_jobs(tmp_path))
    assert WIN_RATE not in found.arms[0].results()[0]["metrics"]
    heading = next(arm for arm in found.arms if arm.label == "rkl").metric(WIN_RATE).title
    assert title_of(found, WIN_RATE) == heading


def test_arms_of_one_skill_have_points_by_the_metric_that_all_have(tmp_path: Path) -> None:
    """As in the table `pareto`; each arm's first metric may be another."""
    for objective, headline, seconds in (("fkl", "accuracy", 1.0), ("rkl", "rouge", 2.0), ("sft", "accuracy", 3.0)):
        folder = write_run(tmp_path, objective, spent={"seconds": seconds}, headline=headline)
        if headline == "rouge":  # which has both
            page = folder.results()
            scores = page["scores"]["sums"]
            scores["accuracy"] = {**scores["rouge"], "after": {**scores["rouge"]["after"], "value": 0.25}}
            page["metrics"]["accuracy"] = {**page["metrics"]["rouge"], "heading": "accuracy"}
            folder.finish(page)
    found = frame_of(read_jobs(tmp_path))
    figure = next(one for one in content(found, Choices())["fronts"] if one["by"][1:] == [OWN, "training seconds"])
    assert figure["y"] == "accuracy"
    by_arm = {found.arms[mark["arm"]].label: mark["y"] for mark in figure["points"]}
    assert by_arm["rkl"] == 0.25


def test_runs_of_other_data_have_a_front_of_their_own(tmp_path: Path) -> None:
    for data, right in (("a", 0.9), ("b", 0.3)):
        for objective, seconds in (("fkl", 1.0), ("rkl", 2.0)):
            write_run(tmp_path, objective, right=right, data=data, spent={"seconds": seconds})
    found = frame_of(read_jobs(tmp_path))
    assert len(found.comparable(found.arms)) == 2
    figure = next(one for one in content(found, Choices())["fronts"] if one["by"][1:] == [OWN, "training seconds"])
    for group in found.comparable(found.arms):
        marks = [mark for mark in figure["points"] if found.arms[mark["arm"]] in group]
        assert len({mark["data"] for mark in marks}) == 1
        assert any(mark["front"] for mark in marks)


def test_the_page_names_what_its_limits_leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grid(tmp_path, seeds=(1,))
    found = frame_of(read_jobs(tmp_path))
    assert content(found, Choices())["problems"] == []
    for name, most in (("MOST_TESTED", 7), ("ARMS", 3)):
        monkeypatch.setattr(comparisons, name, most)
    page = content(found, Choices())
    assert page["differences"] == page["fronts"] == []
    assert page["problems"] == [
        "Differences are not on the page: there are more than 7 runs; they are printed by python -m kd.reports PATH "
        "--tables differences.",
        "Score against cost of sums, words is not all on the page, which has at most 3 arms of a skill and 8,000 "
        "points; they are printed by python -m kd.reports PATH --tables pareto.",
    ]


def test_means_of_one_arm_are_on_its_page(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed)
    found = content(frame_of(read_jobs(tmp_path)), Choices())
    assert "means" in [one["name"] for one in found["tables"]]


def test_long_answers_and_curves_are_bounded(tmp_path: Path) -> None:
    rows = "".join(f"{step},train,loss,{step % 7}\n" for step in range(20_000))
    folder = write_run(tmp_path / "outputs", metrics="step,split,name,value\n" + rows)
    answer = {"skill": "sums", **dict.fromkeys(("prompt", "reference", "response"), "p" * 50_000), "score": 0.0}
    folder.write_samples({**answer, "system": "after", "id": str(i)} for i in range(200))
    folder.finish(folder.results())
    page = document(content(frame_of(read_once([str(folder.path)])), Choices()))
    (own,) = read_back(page)["details"].values()
    assert len(own["answers"]["items"]) == SAMPLES
    assert len(own["answers"]["items"][0]["prompt"]) == LONGEST + 1
    assert len(own["curves"]["train/loss"]["x"]) <= 100
    assert len(page) < 200_000


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_grid(tmp_path / "outputs", seeds=(1, 2))
    run = next((tmp_path / "outputs").glob("sums-fkl-s1-*"))
    (run / "metrics.csv").write_text("step,split,name,value\n1,train,loss,5\n")
    (run / "items.csv").write_text("other\n")
    found = read_back(document(content(frame_of(read_once([str(tmp_path / "outputs")])), Choices())))
    assert any("metrics.csv was changed or damaged" in problem for problem in found["problems"])
    assert any("items.csv was changed or damaged" in problem for problem in found["problems"])
    assert found["fronts"]
    assert len(found["runs"]["rows"]) == 16


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_with_page(tmp_path / "none")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("caution: ")
    assert "holds no run folder" in line


def test_whether_there_is_a_page_makes_no_other_run() -> None:
    hashes = {
        config_hash({"seed": 1, "run": {"page": page, "open": page}}, digests={}, version={}) for page in (True, False)
    }
    assert len(hashes) == 1


def test_the_command_writes_one_file_and_names_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(root), "--page", str(tmp_path / "new" / "report.html")])
    assert ended.value.code == 0
    assert f"Page: {tmp_path}/new/report.html" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    page = (tmp_path / "new" / "report.html").read_text()
    assert read_back(page)["command"] == f"python -m kd.reports {root} --page {tmp_path}/new/report.html"


def test_the_command_of_a_page_has_its_options(frame: Frame) -> None:
    choices = Choices(paths=["outputs"], baseline="objective=sft", correction="bh", paper="gkd_gsm8k")
    command = "python -m kd.reports outputs --baseline objective=sft --correction bh --paper gkd_gsm8k --page a.html"
    assert content(frame, choices, page="a.html")["command"] == command


def test_open_opens_the_file_in_the_browser(root: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    words = [sys.executable, "-m", "kd.reports", str(root), "--page", "report.html", "--open", "--tables", "runs"]
    environment = os.environ | {"BROWSER": f"{browser} %s", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "report.html").absolute().as_uri()
