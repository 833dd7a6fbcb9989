"""What is torn, missing, of another run or of another schema is named, hides no other run, and is never overwritten."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd.reports.frame import read_runs
from kd.reports.runs import read_jobs
from kd.reports.sweep import sweep_grids, write_sweep
from kd.runs.folder import RunFolder
from kd.runs.results import read_results
from kd.sweeps.entry import SweepReport
from kd.sweeps.jobs import Job, announce
from kd.sweeps.jobs import read_jobs as recorded
from tests.reports.test_reports import add_job, add_run, page, program

REPOSITORY = Path(__file__).parents[2]


def torn(folder: Path) -> None:
    whole = (folder / "results.json").read_bytes()
    (folder / "results.json").write_bytes(whole[: len(whole) // 2])


def no_text(folder: Path) -> None:
    (folder / "results.json").write_bytes(b"\xff\xfe\x00")


def missing(folder: Path) -> None:
    (folder / "results.json").unlink()


def a_folder(folder: Path) -> None:
    (folder / "results.json").unlink()
    (folder / "results.json").mkdir()


def changed(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        page = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**page, **fields}))

    return change


def edited(folder: Path) -> None:
    """One digit of one number: the page is whole, and fits the schema."""
    path = folder / "results.json"
    path.write_text(path.read_text().replace("0.75", "0.95", 1))


def without_digests(folder: Path) -> None:
    page = json.loads((folder / "results.json").read_text())
    del page["digests"]
    (folder / "results.json").write_text(json.dumps(page))


def another_done(folder: Path) -> None:
    (folder / "DONE").write_text("f" * 12 + "\n")


def torn_overrides(folder: Path) -> None:
    (folder / "overrides.yaml").write_text("- [a\n")


DAMAGED = {
    "torn": (torn, "results.json is torn"),
    "no text": (no_text, "results.json is torn"),
    "a list": (lambda folder: (folder / "results.json").write_text("[]"), "schema_version None"),
    "a folder": (a_folder, "results.json cannot be read (Is a directory)"),
    "missing": (missing, "results.json is missing"),
    "older schema": (changed(schema_version=0), "has schema_version 0, and this version of kd reads 1"),
    "edited": (edited, "results.json was changed or damaged since the run ended"),
    "a field less": (without_digests, "results.json: digests: Field required"),
    "another run's": (
        changed(config_hash="e" * 12),
        "is of the run eeeeeeeeeeee, and the folder's name of 000000000002",
    ),
    "another run's DONE": (another_done, "is of the run 000000000002, and DONE of ffffffffffff"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED)
def test_it_is_named_and_the_others_are_shown(damage: Callable, says: str, tmp_path: Path) -> None:
    """In the tables of a folder, of a sweep and of the run itself, in runs.csv, and for readers of the frame."""
    sweep = tmp_path / "outputs" / "sweeps" / "today"
    whole, bad = (add_job(sweep, number, [f"a={number}"]) for number in (1, 2))
    damage(bad.path)
    for path in (sweep, tmp_path / "outputs"):
        (table,) = sweep_grids(path)
        status = table.header.index("status")
        assert [row[status] for row in table.rows] == ["done", "unreadable"]
        (named,) = [note for note in table.notes if note.startswith("Not read: ")]
        assert str(bad.path) in named
        assert says in named
        assert table.notes[-1] == named
    with pytest.warns(UserWarning, match="Not read") as warned:
        assert set(read_runs([tmp_path / "outputs"])["run"]) == {whole.path.name}
    assert len(warned) == 1
    write_sweep(sweep)
    assert says in (sweep / "sweep.md").read_text()


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED)
def test_a_run_that_is_done_is_reported_and_how_to_go_on(damage: Callable, says: str, tmp_path: Path) -> None:
    """It is neither skipped without its table nor overwritten; what the sentence says works."""
    folder = add_run(tmp_path, 2, [])
    damage(folder.path)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="is DONE, but its results cannot be read") as refused:
        Job([]).run(folder, lambda folder: pytest.fail("it ran"), config_yaml="")
    assert says in str(refused.value)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before
    command = str(refused.value).rpartition(": ")[2]
    assert command.startswith("mv ")
    subprocess.run(command, shell=True, check=True)
    assert Job([]).run(folder, lambda folder: page(), config_yaml="")["status"] == "done"
    assert folder.old_runs == 1
    assert [job.label for job in read_jobs(tmp_path)] == [folder.path.name]


def test_a_record_of_a_job_that_is_torn_hides_no_other(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "today"
    for number in (0, 2, 10):
        add_job(sweep, number, [f"a={number}"])
    (sweep / "jobs" / "2.json").write_text('{"num": 2, "over')
    (sweep / "jobs" / "3.json").write_text('{"num": 3}')
    jobs = read_jobs(sweep)
    told = [(job.label, job.status) for job in jobs]
    assert told == [("0", "done"), ("2", "unreadable"), ("3", "unreadable"), ("10", "done")]
    first, second = [note for note in sweep_grids(sweep)[-1].notes if note.startswith("Not read")]
    assert "2.json is torn" in first
    assert "3.json is no record of a job: it has no overrides" in second


def field(**changed: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def a_folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


RECORDS = {
    "torn": (lambda path: path.write_text('{"num": 2, "over'), "2.json is torn"),
    "empty": (lambda path: path.write_text(""), "2.json is torn"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "2.json is torn"),
    "a list": (lambda path: path.write_text("[1, 2]"), "2.json is no record of a job: no keys"),
    "null": (lambda path: path.write_text("null"), "2.json is no record of a job: no keys"),
    "a folder": (a_folder_instead, "2.json cannot be read (Is a directory)"),
    "a field less": (lambda path: path.write_text('{"num": 2}'), "is no record of a job: it has no overrides"),
    "overrides are a number": (field(overrides=3), "is no record of a job: overrides: Input should be a valid list"),
    "a folder that is a number": (field(run_folder=5), "is no record of a job: run_folder: Input should be a valid"),
    "seconds are a word": (field(seconds="long"), "is no record of a job: seconds: Input should be a valid number"),
    "an unknown status": (field(status="fine"), "is no record of a job: status: Input should be 'waiting', 'running'"),
    "no number": (field(num=None), "is no record of a job: num: Input should be a valid integer"),
    "another job's": (field(num=3), "2.json is the record of job 3, and its name that of job 2"),
}


@pytest.mark.parametrize(("damage", "says"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_cannot_be_read_is_listed(damage: Callable, says: str, tmp_path: Path) -> None:
    """By the tables; and by what runs and ends a sweep, which goes on, leaves the file and does not end with 0."""
    sweep = tmp_path / "outputs" / "sweeps" / "today"
    for number in (1, 2, 10):
        add_job(sweep, number, [f"a={number}"])
    Job([], sweep, 3, "waiting").write()
    path = sweep / "jobs" / "2.json"
    damage(path)
    left = path.read_bytes() if path.is_file() else None
    assert [(job.label, job.status) for job in read_jobs(sweep)][1] == ("2", "unreadable")
    (note,) = [note for note in sweep_grids(sweep)[-1].notes if note.startswith("Not read")]
    assert says in note
    found = recorded(sweep)
    assert {number: job.status for number, job in found.items()} == {
        1: "done",
        2: "unreadable",
        3: "waiting",
        10: "done",
    }
    assert says in str(found[2].reason)
    announce(sweep, 3, [])
    SweepReport.sweep = sweep
    assert not SweepReport.conclude(settle=True)
    assert says in (sweep / "sweep.md").read_text()
    assert (path.read_bytes() if path.is_file() else None) == left


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "today"
    add_job(sweep, 2, ["a=2"])
    field(of_a_later_version={"b": 1})(sweep / "jobs" / "2.json")
    (sweep / "jobs" / "notes.json").write_text("{}")
    assert [(number, job.overrides) for number, job in recorded(sweep).items()] == [(2, ["a=2"])]
    assert [job.status for job in read_jobs(sweep)] == ["done", "unreadable"]


def test_overrides_that_are_torn_are_named_and_the_results_shown(tmp_path: Path) -> None:
    torn_overrides(add_run(tmp_path, 1, ["a=1"]).path)
    (job,) = read_jobs(tmp_path)
    assert (job.status, dict(job.overrides)) == ("done", {})
    assert "overrides.yaml is torn" in str(job.problem)


def test_the_program_ends_with_1_after_the_tables(tmp_path: Path) -> None:
    folders = [add_run(tmp_path, number, [f"a={number}"]) for number in (1, 2, 3)]
    torn(folders[1].path)
    shown = program(tmp_path, "--out", tmp_path / "report")
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert shown.stdout.count("Not read: ") == 1
    assert all(folder.path.name in shown.stdout for folder in folders)
    assert "Not read: " in (tmp_path / "report" / "tables.md").read_text()
    named = {line.partition(",")[0] for line in (tmp_path / "report" / "runs.csv").read_text().splitlines()[1:]}
    assert named == {folders[0].path.name, folders[2].path.name}
    alone = program(folders[1].path)
    assert (alone.returncode, alone.stdout.count("Not read: ")) == (1, 1)
    assert program(folders[0].path).returncode == 0


def test_a_folder_that_was_renamed_is_read(tmp_path: Path) -> None:
    folder = add_run(tmp_path, 1, [])
    for name in ("my best run", f"{folder.path.name}.old-3"):
        moved = folder.path.rename(tmp_path / name)
        assert read_results(moved)["status"] == "done"
        folder = RunFolder(moved)
