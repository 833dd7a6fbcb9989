"""Published tables beside ours: `experiments/*/published.yaml`, and run folders as the program writes them.

Run: python -m pytest tests/reports/test_papers.py
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kd.reports.__main__ import main
from kd.reports.frame import Frame, frame_of
from kd.reports.grid import Cell, Grid
from kd.reports.paired import Side, mean_difference
from kd.reports.papers.published import Published, papers, read_published
from kd.reports.papers.tables import paper_grids
from kd.reports.runs import Job, read_jobs
from kd.reports.settings import has, settings_of
from kd.runs.folder import NOT_HASHED
from tests.reports.folders import config, write_run

PAPER: dict[str, Any] = {
    "paper": "Sums, Table 1",
    "source": "https://example.org/sums",
    "setting": "accuracy, 3 seeds",
    "metric": "accuracy",
    "scale": 100,
    "columns": {"sums": {"heading": "Sums", "skill": "sums"}, "words": {"heading": "Words", "skill": "words"}},
    "rows": [
        {"heading": "Teacher", "system": "teacher", "values": {"sums": 90}},
        {"heading": "SFT", "arm": {"objective": "sft"}, "values": {"sums": 21, "words": 20}},
        {"heading": "KD", "arm": {"objective": "fkl"}, "values": {"sums": 80, "words": 80}, "deviation": {"sums": 20}},
        {"heading": "RKD", "arm": {"objective": "rkl"}, "values": {"sums": 40}, "unconfirmed": ["sums"]},
    ],
    "directions": [
        {"better": "KD", "than": "SFT"},
        {"better": "RKD", "than": "SFT", "on": "sums"},
        {"better": "Teacher", "than": "SFT"},
    ],
}


def published(**changes: Any) -> Published:
    return Published.model_validate({**PAPER, **changes})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a paper of the user's own."""
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str = "sums", **changes: Any) -> None:
    path = folder / "experiments" / name / "published.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**PAPER, **changes}, sort_keys=False))


def frame(*paths: Path) -> Frame:
    return frame_of([job for path in paths for job in read_jobs(path)])


def rows(grid: Grid) -> dict[str, list[str]]:
    return {" ".join(row[: grid.labels]): list(row[grid.labels :]) for row in grid.rows}


# --- the file ---


def test_every_published_table_of_the_project_is_read() -> None:
    assert "minillm_table1" in papers()
    for name in papers():
        table = read_published(name)
        assert table.source.startswith("https://"), name
        assert all(row.arm or row.lacks or row.system != "after" for row in table.rows), name


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"directions": [{"better": "MiniLM", "than": "SFT"}]}, "directions[0].better=MiniLM: there is no such row"),
        ({"directions": [{"better": "KD", "than": "SFT", "on": "summs"}]}, "did you mean sums?"),
        ({"directions": [{"better": "SFT", "than": "KD"}]}, "their difference is -59.5; turn it around"),
        ({"directions": [{"better": "KD", "than": "KD"}]}, "compares KD with itself"),
        ({"directions": [{"better": "KD", "than": "RKD", "on": "words"}]}, "needs a number of both"),
        ({"rows": [*PAPER["rows"], {"heading": "KD", "values": {}}]}, "two rows have the heading KD"),
        ({"rows": [{"heading": "KD", "values": {"sum": 3}}], "directions": []}, "row KD: values of sum: there is no"),
        (
            {"rows": [{"heading": "KD", "values": {"sums": 3}, "deviation": {"words": 1}}], "directions": []},
            "row KD: deviation of words, which has no value there",
        ),
        (
            {"rows": [{"heading": "KD", "values": {"sums": 3}, "interval": {"sums": [4, 5]}}], "directions": []},
            "row KD: 3 of sums is not in [4, 5]",
        ),
        (
            {
                "rows": [{"heading": "KD", "arm": {"objective": "fkl"}, "lacks": "no loss", "values": {}}],
                "directions": [],
            },
            "row KD has an arm, and lacks one (no loss)",
        ),
        ({"rowz": []}, "rowz: Extra inputs are not permitted"),
        ({"scale": 0}, "scale: Input should be greater than 0"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_in_one_sentence(changes: Any, part: str, place: Path) -> None:
    write(place, **changes)
    with pytest.raises(ValueError, match=r"^sums/published\.yaml: ") as refused:
        read_published("sums")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_paper_is_refused_with_all_that_there_are(place: Path) -> None:
    with pytest.raises(ValueError, match=r"paper=sum: there is no such .* did you mean sums\? there are .*minillm_tab"):
        read_published("sum")


def test_a_plain_on_of_yaml_is_the_key_on(place: Path) -> None:
    """YAML 1.1 reads it as true."""
    text = yaml.safe_dump(PAPER).replace("'on':", "on:")
    assert "\n  on: sums" in text
    (place / "experiments" / "sums" / "published.yaml").write_text(text)
    assert read_published("sums").directions[1].on == ["sums"]


def test_settings_are_written_as_yaml_has_them_and_compared_as_reports_do() -> None:
    arm = {"optim.lr": "1e-3", "optim.steps": 300, "optim.clip": None, "checkpoint.validate_first": True, "a": "1.0"}
    table = published(rows=[{"heading": "KD", "arm": arm, "values": {}}], directions=[])
    assert dict(table.rows[0].arm) == {
        **{"optim.lr": "0.001", "optim.steps": "300", "optim.clip": "null"},
        **{"checkpoint.validate_first": "true", "a": "1"},
    }


def test_a_paper_is_no_part_of_the_identity_of_a_run() -> None:
    assert "paper" in NOT_HASHED


# --- scores ---


def test_ours_stand_beside_the_published_numbers_on_the_paper_s_skills(root: Path, place: Path) -> None:
    found = frame(root)
    scores, _ = paper_grids(found, "sums")
    cells = rows(scores)
    (arm,) = [arm for arm in found.arms if arm.values["objective"] == "fkl" and arm.skill == "sums"]
    mean = np.mean([one["value"] for one in arm.estimates("sums", "accuracy").values()])
    ours, theirs, delta, in_ours, in_theirs = cells["KD Sums"]
    assert isinstance(ours, Cell)
    assert ours.value == pytest.approx(100 * mean)
    assert ours.low < ours.value < ours.high  # type: ignore[operator]
    assert isinstance(delta, Cell)
    assert delta.value == pytest.approx(100 * mean - 80)
    assert (theirs, in_ours) == ("80 ± 20", "yes" if ours.low <= 80 <= ours.high else "no")  # type: ignore[operator]
    assert in_theirs == "yes"  # 60 to 100
    assert cells["RKD Sums"][1] == "40*"
    assert cells["RKD Words"][1:] == ["–", "–", "–", "–"]  # ours alone
    assert "Teacher Sums" in cells
    assert any(note.startswith("* ") for note in scores.notes)
    assert "Without a row in the paper: jsd." in scores.notes


def test_on_skills_of_ours_the_published_columns_stand_beside_them(root: Path, place: Path) -> None:
    columns = {"sums": {"heading": "Dolly", "skill": "dolly"}, "words": {"heading": "Vicuna", "skill": "vicuna"}}
    write(place, columns=columns)
    scores, claims = paper_grids(frame(root), "sums")
    assert scores.header == ["system", "sums\naccuracy", "words\naccuracy", "Dolly\npublished", "Vicuna\npublished"]
    assert rows(scores)["KD"][2:] == ["80 ± 20", "80"]
    assert isinstance(rows(scores)["KD"][0], Cell)
    assert rows(scores)["KD"][0].value == pytest.approx(0.8, abs=0.1)  # type: ignore[union-attr]
    assert "only directions can be compared" in scores.notes[0]
    assert rows(claims)["KD > SFT"][-1] == "agrees"


def test_of_several_arms_with_a_row_s_settings_those_with_runs_that_name_the_paper_count(
    root: Path, place: Path, tmp_path: Path
) -> None:
    other = tmp_path / "others"
    facts = {"sections": {"optim": {"steps": 80, "lr": 0.001}}}
    for seed in (1, 2, 3):
        write_run(other, "fkl", seed=seed, right=0.5, **facts)
    with pytest.raises(ValueError, match=r"row KD of Sums, Table 1 fits 2 arms on sums: .*optim\.steps=80.*one sweep"):
        paper_grids(frame(root, other), "sums")
    named = tmp_path / "named"
    for seed in (1, 2, 3):
        for objective, right in {"fkl": 0.5, "sft": 0.2}.items():
            write_run(named, objective, seed=seed, right=right, sections={**facts["sections"], "paper": "sums"})
    scores, _ = paper_grids(frame(root, named), "sums")
    assert rows(scores)["KD Sums"][0].value == pytest.approx(50, abs=9)  # type: ignore[union-attr]
    assert "Words" not in " ".join(rows(scores))  # of the arms that do not name it


def test_the_teacher_and_the_student_before_are_the_same_in_all_arms_of_the_same_models(
    root: Path, place: Path, tmp_path: Path
) -> None:
    start = {"heading": "Start", "system": "before", "values": {"sums": 3}}
    write(place, rows=[*PAPER["rows"], start])
    found = rows(paper_grids(frame(root), "sums")[0])["Start Sums"]
    assert isinstance(found[0], Cell)
    assert found[1:3] == ["3", "−3.00"]
    for role, heading in (("teacher", "Teacher"), ("student", "Start")):
        other = config()[role] | {"model": {"_target_": "kd.models.networks.pretrained"}}
        write_run(tmp_path / role, "fkl", sections={role: other})
        arms = [{**PAPER["rows"][1], "arm": {"objective": "rkl"}}, {"heading": "Teacher", "system": "teacher"}, start]
        kept = [{"values": {}, **row} for row in arms if row["heading"] in ("SFT", heading)]
        write(place, rows=kept, directions=[])
        with pytest.raises(ValueError, match=rf"row {heading} of Sums, Table 1 fits \d arms on sums: .*pretrained"):
            paper_grids(frame(root, tmp_path / role), "sums")


def test_arms_of_our_own_skills_are_compared_by_a_metric_that_all_have(place: Path, tmp_path: Path) -> None:
    """The first metric of one arm is another's second: their difference is one of the same metric."""
    for seed in (1, 2, 3):
        write_run(tmp_path / "own", "sft", "sorting", seed, right=0.2)
        folder = write_run(tmp_path / "own", "fkl", "sorting", seed, right=0.8, headline="rouge")
        page = folder.results()
        scores = page["scores"]["sorting"]
        scores["accuracy"] = {**scores["rouge"], "after": {**scores["rouge"]["after"], "value": 0.0}}
        page["metrics"]["accuracy"] = {**page["metrics"]["rouge"], "heading": "accuracy"}
        folder.finish(page)
    scores, claims = paper_grids(frame(tmp_path / "own"), "sums", correction="none")
    assert scores.header[1] == "sorting\naccuracy"
    ours = rows(claims)["KD > SFT"][1]
    assert isinstance(ours, Cell)
    assert ours.value < 0  # type: ignore[operator]


def test_values_of_a_row_are_those_of_its_runs_however_they_are_written(root: Path, place: Path) -> None:
    arm = {"objective": "fkl", "optim.lr": "1e-3", "optim.steps": "40", "teacher.model": "scratch"}
    write(place, rows=[{**PAPER["rows"][2], "arm": arm}], directions=[])
    assert isinstance(rows(paper_grids(frame(root), "sums")[0])["KD Sums"][0], Cell)
    assert has({"compare": "null", "run.page": "true"}, {"compare": None, "run.page": "True"})
    assert not has({}, {"compare": "null"})  # a setting that a run lacks has no value


def test_seeds_that_follow_the_runs_own_separate_no_arms() -> None:
    """A student prepared again for each seed, and a rollout's coins; a seed that does not follow is a setting."""

    def columns(coins: int) -> Sequence[str]:
        own = {seed: {"student": {"prepare": {"seed": seed}}, "rollout": {"seed": seed}} for seed in (1, 2, 3)}
        own[3]["rollout"]["seed"] = coins
        return settings_of([Job("", "done", config=config("fkl", seed=s, **own[s])) for s in own]).columns

    assert columns(3) == []
    assert columns(9) == ["rollout.seed"]


def test_without_a_run_of_a_row_the_sentence_names_the_rows(root: Path, place: Path) -> None:
    write(place, rows=[{"heading": "X", "arm": {"method": "minillm"}, "values": {}}], directions=[])
    with pytest.raises(ValueError, match=r"no run has the settings of a row of Sums, Table 1.*X \(method=minillm\)"):
        paper_grids(frame(root), "sums")


# --- directions ---


def test_directions_are_tested_with_an_interval_and_a_verdict(root: Path, place: Path) -> None:
    _, claims = paper_grids(frame(root), "sums", correction="none")
    cells = rows(claims)
    assert [cell[-1] for cell in cells.values()] == ["agrees", "not decided", "agrees"]
    theirs, ours, p, _ = cells["KD > SFT"]
    assert theirs == "+59.5"  # ((80 - 21) + (80 - 20)) / 2
    assert isinstance(ours, Cell)
    assert ours.low < ours.value < ours.high  # type: ignore[operator]
    assert ours.value == pytest.approx(60, abs=8)
    assert p == "<0.001"
    assert list(cells)[1] == "RKD > SFT\non Sums"
    assert cells["RKD > SFT\non Sums"][0] == "+19.0*"
    turned = [{"better": "SFT", "than": "KD"}]
    lower = {"sums": {"heading": "Sums", "skill": "sums"}}
    values = [{**row, "values": {"sums": 1 if row["heading"] == "KD" else 5}} for row in PAPER["rows"]]
    write(place, columns=lower, rows=[{**row, "unconfirmed": []} for row in values], directions=turned)
    assert rows(paper_grids(frame(root), "sums")[1])["SFT > KD"][-1] == "opposite"


def test_a_direction_with_a_row_that_was_not_run_is_not_run(root: Path, place: Path) -> None:
    more = {"heading": "Best", "arm": {"objective": "ab"}, "values": {"sums": 99}}
    write(place, rows=[*PAPER["rows"], more], directions=[{"better": "Best", "than": "SFT"}])
    scores, claims = paper_grids(frame(root), "sums")
    assert rows(claims)["Best > SFT"] == ["+78.0", "–", "–", "not run"]
    assert "Without a run of ours: Best." in scores.notes


def test_a_claim_that_is_stated_in_a_figure_is_tested_and_a_row_without_an_arm_has_a_reason(
    root: Path, place: Path
) -> None:
    """The numbers of a figure are not read; its claim is tested on all columns that ours have."""
    bare = [
        {key: value for key, value in row.items() if key == "heading" or key == "arm"} for row in PAPER["rows"][1:3]
    ]
    lacking = {"heading": "GAN", "lacks": "no such loss", "values": {"sums": 99}}
    claim = {"better": "KD", "than": "SFT", "stated": "figure"}
    write(place, rows=[*({**row, "values": {}} for row in bare), lacking], directions=[claim])
    scores, claims = paper_grids(frame(root), "sums")
    assert "Without a run of ours: GAN (no such loss)." in scores.notes
    assert rows(scores)["GAN Sums"][0] == "–"
    assert rows(claims)["KD > SFT"][0] == "figure"
    write(place)
    _, measured = paper_grids(frame(root), "sums")
    assert rows(claims)["KD > SFT"][1] == rows(measured)["KD > SFT"][1]


def test_a_mean_over_columns_is_the_mean_of_their_differences_and_known_better_than_each(root: Path) -> None:
    """Two skills of as many independent items halve the variance; the mean of three numbers is by hand."""
    found = frame(root)
    arms = {(arm.values["objective"], arm.skill): arm for arm in found.arms}
    pairs = [
        (Side(arms["jsd", skill], skill, "accuracy"), Side(arms["sft", skill], skill, "accuracy"), factor)
        for skill, factor in (("sums", 1.0), ("words", 1.0))
    ]
    each = [mean_difference([pair]) for pair in pairs]
    both = mean_difference(pairs)
    assert both is not None
    assert all(one is not None for one in each)
    assert both.value == pytest.approx(np.mean([one.value for one in each]))  # type: ignore[union-attr]
    width = (both.high - both.low) / np.mean([one.high - one.low for one in each])  # type: ignore[union-attr]
    assert width == pytest.approx(1 / math.sqrt(2), rel=0.25)
    scaled = mean_difference([(*pair[:2], 100.0) for pair in pairs])
    assert scaled is not None
    assert scaled.low == pytest.approx(100 * both.low)
    turned = mean_difference([(other, one, factor) for one, other, factor in pairs])
    assert turned is not None
    assert (turned.low, turned.p) == pytest.approx((-both.high, both.p))


def test_the_command_prints_the_tables_again_in_all_formats(
    root: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("terminal", "markdown", "latex", "csv", "json"):
        with pytest.raises(SystemExit) as ended:
            main([str(root), "--paper", "sums", "--format", form])
        assert ended.value.code == 0
        assert "Directions of Sums, Table 1" in capsys.readouterr().out, form
    with pytest.raises(
        SystemExit, match=r"paper=sumz: there is no such experiments/\*/published.yaml; did you mean sums"
    ):
        main([str(root), "--paper", "sumz"])
