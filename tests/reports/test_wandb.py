"""W&B, offline: what a run's record holds, read back, and the dashboard, which shows only what runs log.

Run: python -m pytest tests/reports/test_wandb.py
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.workspaces as ws

from kd.reports.__main__ import main
from kd.reports.frame import frame_of
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices
from kd.reports.wandb.dashboard import spec
from kd.reports.wandb.final import POSITION
from kd.reports.wandb.record import STEP
from kd.runs.results import read_results
from tests.documents import ROOT, commands
from tests.reports.folders import by_position, logged, write_run
from tests.wandb_records import Record, records_of

COMMANDS = [line for line in commands(ROOT / "docs" / "dashboards.md") if line.startswith("python -m kd.reports")]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["wandb", *words])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def without_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fkl on two skills, and sft beside it, recorded by the command."""
    made = tmp_path_factory.mktemp("wandb") / "outputs"
    for skill in ("sums", "words"):
        beside = write_run(made, "sft", skill, right=0.2, metrics=logged(1, 3.0))
        facts = {"metrics": logged(2, 0.5), "spent": {"seconds": 3.0}, "positions": by_position(skill, 0.4)}
        write_run(made, "fkl", skill, baseline=beside, **facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("NETRC", str(made / "netrc"))
        patch.setenv("WANDB_DATA_DIR", str(made.parent / "data"))
        assert call(str(made), "--log-runs", "--offline", str(made.parent / "spec.json")) == 0
    return made


@pytest.fixture(scope="module")
def records(root: Path) -> dict[str, Record]:
    """The one record of each run folder, by its name."""
    return {path.name: record for path in root.iterdir() if path.is_dir() for record in records_of(path)}


# ---- the record of a run ---------------------------------------------------------------------------------------------


def test_each_run_has_a_record_of_its_own(root: Path, records: Mapping[str, Record]) -> None:
    folders = [path for path in root.iterdir() if (path / "DONE").exists()]
    assert {path.name for path in folders} == set(records)
    assert all(len(records_of(path)) == 1 for path in folders)
    assert {name: record.id for name, record in records.items()} == {name: name[-12:] for name in records}


def test_the_summary_has_the_final_scores_of_all_systems(root: Path, records: Mapping[str, Record]) -> None:
    """They are those of results.json, which is read here by hand."""
    for name, record in records.items():
        results = json.loads((root / name / "results.json").read_text())
        for skill, metrics in results["scores"].items():
            for metric, systems in metrics.items():
                for system, one in systems.items():
                    key = f"scores/{skill}/{metric}/{system}"
                    assert record.summary.get(key) == (None if one is None else one["value"]), key
        own = results["scores"][name.partition("-")[0]]["accuracy"]
        assert record.summary["headline/after"] == own["after"]["value"]
        assert record.summary["budget/seconds"] == results["budget"]["seconds"]
    fkl = next(record for name, record in records.items() if name.startswith("sums-fkl"))
    assert {"teacher", "before", "after", "sft"} <= {key.rpartition("/")[2] for key in fkl.summary if "accuracy" in key}


def test_the_history_is_metrics_csv(root: Path, records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        rows = [line.split(",") for line in (root / name / "metrics.csv").read_text().splitlines()[1:]]
        assert len(rows) == 5
        found = [(row[STEP], key, row[key]) for row in record.history for key in row if key == "train/loss"]
        assert found == [(int(step), f"{split}/{metric}", float(value)) for step, split, metric, value in rows]


def test_runs_are_grouped_and_tagged_by_axis(records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        skill, objective = name.split("-")[:2]
        assert {f"objective:{objective}", f"skill:{skill}", "rollout:offline"} <= set(record.tags)
        assert not [tag for tag in record.tags if tag.startswith(("optim", "seed", "none")) or tag.endswith(":none")]
        assert (record.config["axis_objective"], record.config["axis_skill"]) == (objective, skill)
        assert record.config["optim"]["lr"] == 0.001  # the composed config
        assert record.job_type == ("baseline" if objective == "sft" else "train")
        assert record.group == f"{skill}-{objective}"


def test_tables_of_scores_and_answers(root: Path, records: Mapping[str, Record]) -> None:
    name = next(name for name in records if name.startswith("sums-fkl"))
    scores, answers = records[name].table("tables/scores"), records[name].table("tables/answers")
    results = json.loads((root / name / "results.json").read_text())
    found = {(row["metric"], row["system"]): row for row in scores}
    for metric, systems in results["scores"]["sums"].items():
        for system, one in systems.items():
            if one is not None:
                assert {key: found[metric, system][key] for key in ("value", "low", "high", "n")} == one
    texts: dict[tuple[str, str], Any] = {}
    for folder, system in ((root / name, None), (next(root.glob("sums-sft-*")), "sft")):
        for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()):
            if system is None or row["system"] == "after":
                texts[row["prompt"], system or row["system"]] = (row["response"], row["score"])
    assert len(answers) == 32
    for row in answers:
        for system in ("teacher", "sft", "before", "after"):
            assert (row[system], row[f"score {system}"]) == texts[row["prompt"], system]


def test_the_history_has_the_curves_by_position(records: Mapping[str, Record]) -> None:
    """Of the trained student: bins that double, from 0.4 on in steps of a tenth."""
    record = next(record for name, record in records.items() if name.startswith("words-fkl"))
    rows = [row for row in record.history if POSITION in row]
    assert [row[POSITION] for row in rows] == [1, 2, 3, 5, 9]
    found = [row["positions/references/forward_kl"] for row in rows]
    assert found == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert [row["positions/references/reverse_kl"] for row in rows] == pytest.approx([2 * kl for kl in found])


def test_recorded_runs_are_not_recorded_again(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(root), "--log-runs", "--offline", str(tmp_path / "spec.json")) == 0
    assert "0 runs recorded" in capsys.readouterr().out
    assert all(len(records_of(path)) == 1 for path in root.iterdir() if (path / "DONE").exists())


# ---- the dashboard ---------------------------------------------------------------------------------------------------


def panels(node: Any) -> Iterator[Mapping[str, Any]]:
    """The configs of all panels below a node of the spec."""
    if isinstance(node, Mapping):
        if "viewType" in node:
            yield node
        for value in node.values():
            yield from panels(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels(value)


def shown(panel: Mapping[str, Any]) -> set[str]:
    """The names of history, summary and tables that a panel shows."""
    config = panel["config"]
    if panel["viewType"] == "Scatter Plot":
        return {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")}
    if panel["viewType"] == "Weave":
        return {name for name in ("tables/answers", "tables/scores") if name in json.dumps(config)}
    axis = {config["xAxis"]} if panel["viewType"] == "Run History Line Plot" else set()
    return {*config.get("metrics", ()), *axis}


def test_every_name_that_a_panel_shows_is_logged(root: Path, records: Mapping[str, Record]) -> None:
    found = json.loads((root.parent / "spec.json").read_text())
    kinds = set()
    for view in found["workspaces"]:
        skill = view["displayName"].removeprefix("kd: ")
        own = [record for name, record in records.items() if name.startswith(skill)]
        known = {name for record in own for name in (*record.summary, *(key for row in record.history for key in row))}
        for panel in panels(view):
            kinds.add(panel["viewType"])
            assert shown(panel) <= known, panel["config"]
            assert panel["config"].get("groupBy") in (None, "axis_objective.value", "axis_objective")
    charts = {"Run History Line Plot", "Bar Chart", "Scatter Plot", "Markdown Panel", "Run Comparer", "Weave"}
    assert kinds == charts
    by_place = [p["config"] for p in panels(found["workspaces"][0]) if p["config"].get("xAxis") == POSITION]
    assert len(by_place) == 5  # KL both ways, top-1, and both entropies
    assert {"positions/references/forward_kl", "positions/references/top1"} <= {c["metrics"][0] for c in by_place}
    assert all(config["xLogScale"] and "by position in the references" in config["chartTitle"] for config in by_place)
    everything = {name for record in records.values() for row in record.history for name in row}
    everything |= {name for record in records.values() for name in record.summary}
    assert all(shown(panel) <= everything for panel in panels(found["report"]))
    assert len(list(panels(found["report"]))) > 6


def test_the_views_are_of_one_skill_each_and_grouped_by_objective(root: Path) -> None:
    found = json.loads((root.parent / "spec.json").read_text())
    assert [view["displayName"] for view in found["workspaces"]] == ["kd: sums", "kd: words"]
    for view, skill in zip(found["workspaces"], ("sums", "words"), strict=True):
        text = json.dumps(view["spec"]["section"]["runSets"])
        assert f'"value": "{skill}"' in text
        assert "axis_skill" in text
        assert "axis_objective" in text
        again = ws.Workspace._from_model(ws.internal.View.model_validate(view))
        assert again.sections[0].name == "Scores"


def test_a_skill_may_have_any_name(tmp_path: Path) -> None:
    """The name of a file may be any; the library would not quote it."""
    write_run(tmp_path, skill='it\'s my "own" skill')
    found = spec(frame_of(read_jobs(tmp_path)), Choices(), entity="", project="kd")
    text = json.dumps(found["workspaces"][0]["spec"]["section"]["runSets"])
    assert json.dumps('it\'s my "own" skill') in text
    assert json.dumps('it\'s my "own" skill') in json.dumps(found["report"])


def test_the_table_of_scores_is_the_heat_map(root: Path) -> None:
    """Objective × skill, a mean of one seed as results.json has it."""
    found = json.loads((root.parent / "spec.json").read_text())
    table = next(p["config"]["value"] for p in panels(found["workspaces"][0]) if p["viewType"] == "Markdown Panel")
    results = read_results(next(root.glob("words-fkl-*")))
    value = results["scores"]["words"]["accuracy"]["after"]["value"]
    (row,) = (line for line in table.splitlines() if line.startswith("| fkl "))
    assert f"{value:.3g}"[:4] in row
    assert all(f"| {name} " in table for name in ("fkl", "sft"))


def test_runs_of_one_objective_are_grouped_by_what_differs(tmp_path: Path) -> None:
    for name in ("Offline", "OnPolicy"):
        rollout = {"rollout": {"_target_": f"kd.rollouts.x.{name}"}}
        write_run(tmp_path, sections=rollout)
    found = spec(frame_of(read_jobs(tmp_path)), Choices(), entity="", project="kd")
    assert "axis_rollout" in json.dumps(found["workspaces"])


# ---- the command -----------------------------------------------------------------------------------------------------


def test_without_an_account_the_way_to_publish_is_printed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(str(root), "--entity", "team") == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "wandb-dashboard.json").is_file()
    assert f"wandb sync {root}/*/wandb/offline-run-*" in printed
    assert f"python -m kd.reports wandb {root} --entity team --project kd" in printed


def test_the_command_that_uploads_finds_the_records(root: Path) -> None:
    """`wandb sync`, as it is printed, on what was written; --dry-run, for there is no account."""
    pattern = f"{root}/*/wandb/offline-run-*"
    done = subprocess.run(
        f"{shlex.quote(str(Path(sys.executable).with_name('wandb')))} sync --dry-run {pattern}",
        shell=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": os.defpath},
    )
    assert done.returncode == 0, done.stderr
    assert all(path.name[-12:] in done.stdout + done.stderr for path in root.iterdir() if (path / "DONE").exists())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    write_run(tmp_path / "outputs")
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "kd.reports", "wandb"]
    assert call(*words[4:]) == 0
    assert json.loads((tmp_path / "wandb-dashboard.json").read_text())["workspaces"]


def test_folders_without_a_finished_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run-0123456789ab").mkdir()
    (tmp_path / "run-0123456789ab" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(SystemExit, match="no run is finished"):
        main(["wandb", str(tmp_path)])
