"""The run folder keeps its promises: hashes, locks, whole files, DONE last. Real processes where they matter."""

import json
import math
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Timer
from typing import Any

import lightning
import pytest
import yaml

from kd.runs import folder as run_folder
from kd.runs.folder import RunFolder, config_hash, git_state
from kd.runs.metrics_log import TidyLogger, last_value

CONFIG = {"objective": {"name": "fkl", "weight": 1.0}, "layers": [1, 2], "data": {"length": 512}, "lr": 0.001}
HASH = "0123456789ab"


def results(**changes: Any) -> dict[str, Any]:
    value = {"value": 1.0, "n": 32, "low": 0.5, "high": 1.5}
    students = {"before": value, "after": value}
    return {
        "seed": 1,
        "scores": {"toy": {"accuracy": {**students, "teacher": value}}},
        "gap_closed": {"toy": {"accuracy": 0.5}},
        "agreement": {"top1": students, "forward_kl": students, "reverse_kl": students},
        "budget": {
            **{"student_flops": 1e12, "tokens": 10, "teacher_tokens": 10, "generated_tokens": 0},
            **{"seconds": 2.5, "peak_memory_bytes": 100},
        },
        "digests": {"initial_weights": "a", "data_order": "b", "evaluation_items": "c"},
        **changes,
    }


def folder(root: Path) -> RunFolder:
    return RunFolder.of(root, "toy", HASH)


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    repository = Path(run_folder.__file__).parents[2]
    return subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- the hash -------------------------------------------------------------------------------------------------


def test_hash_ignores_order_of_keys_and_where_a_run_is_recorded() -> None:
    first = config_hash(CONFIG, digests={"teacher": "t", "data": "d"}, version={"kd": "1"})
    shuffled = dict(reversed(CONFIG.items())) | {"objective": {"weight": 1.0, "name": "fkl"}}
    shuffled |= {"hydra": {"a": 1}, "logger": {"wandb": {}}, "run": {"root": "elsewhere", "force": True}, "name": "x"}
    shuffled["data"] = {"workers": 4, "length": 512}
    assert config_hash(shuffled, digests={"data": "d", "teacher": "t"}, version={"kd": "1"}) == first
    assert len(first) == 12
    assert set(first) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {**CONFIG, "lr": 0.002}},
        {"config": {**CONFIG, "layers": [2, 1]}},  # the order of a list means something
        {"config": {**CONFIG, "data": {"length": 512, "logger": 1}}},  # excluded at the top, not everywhere
        {"digests": {"teacher": "other"}},
        {"digests": {}},
        {"version": {"kd": "2"}},
    ],
)
def test_hash_sees_whatever_changes_the_result(changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"config": CONFIG, "digests": {"teacher": "t"}, "version": {"kd": "1"}}
    assert config_hash(**{**arguments, **changed}) != config_hash(**arguments)


def test_hash_refuses_what_has_no_text() -> None:
    with pytest.raises(ValueError, match="type PosixPath"):
        config_hash({"path": Path("x")}, digests={}, version={"kd": "1"})


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_stays_inside_the_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.name"):
        RunFolder.of(tmp_path, name, HASH)


# --- writing ---------------------------------------------------------------------------------------------------


def test_a_run_from_start_to_done(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.start("lr: 0.1\n", ["objective=rkl", "+note=a: b"])
    assert not run.done
    run.write_samples([{"prompt": "1+1?", "response": "zwei ✓", "score": 1.0}, {"score": math.nan}])
    run.finish(results())
    assert run.done
    assert run.results()["config_hash"] == HASH
    assert run.results()["status"] == "done"
    assert run.results()["scores"]["toy"]["accuracy"]["floor"] is None
    rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": "1+1?", "response": "zwei ✓", "score": 1.0}, {"score": None}]
    assert yaml.safe_load((run.path / "overrides.yaml").read_text()) == ["objective=rkl", "+note=a: b"]
    assert {"config.yaml", "environment.json", "results.json", "DONE"} <= {p.name for p in run.path.iterdir()}


def test_environment_names_versions_and_commit(tmp_path: Path) -> None:
    environment = run_folder.environment()
    assert environment["versions"]["lightning"] == lightning.__version__
    assert environment["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert environment["threads"] >= 1


def test_git_state_sees_uncommitted_changes(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}
    installed = tmp_path / ".venv" / "kd"  # in another project's checkout, whose commit is not that of kd
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) is None


def test_nan_becomes_null(tmp_path: Path) -> None:
    run = folder(tmp_path)
    bad = {"value": math.nan, "n": 0, "low": -math.inf, "high": math.inf}
    page = run.finish(
        results(gap_closed={"toy": {"accuracy": math.nan}}, scores={"t": {"m": {"before": bad, "after": bad}}})
    )
    assert page == run.results()
    assert page["gap_closed"]["toy"]["accuracy"] is None
    assert page["scores"]["t"]["m"]["after"] == {"value": None, "n": 0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"tokens": 1}}, "budget.student_flops"),
        ({"accuracy": 1.0}, "accuracy: Extra inputs"),
        ({"seed": "one"}, "seed"),
        ({"scores": {"t": {"m": {"before": {"value": 1.0, "n": 3}}}}}, "scores.t.m.after"),
        ({"gap_closed": {"t": {"m": "half"}}}, "gap_closed.t.m"),
        ({"config_hash": "ffffffffffff"}, "config_hash"),
        ({"digests": {"initial_weights": 1, "data_order": "", "evaluation_items": ""}}, "digests.initial_weights"),
    ],
)
def test_results_that_break_the_schema_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = folder(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        run.finish(results(**changes))
    assert "\n" not in str(error.value)
    assert not run.done
    assert not (run.path / "results.json").exists()


def test_an_interval_upside_down_is_refused(tmp_path: Path) -> None:
    value = {"value": 1.0, "n": 3, "low": 2.0, "high": 1.0}
    with pytest.raises(ValueError, match=r"low=2\.0 is above high=1\.0"):
        folder(tmp_path).finish(results(scores={"t": {"m": {"before": value, "after": value}}}))


def test_without_a_teacher_there_is_no_agreement(tmp_path: Path) -> None:
    assert folder(tmp_path).finish(results(agreement=None))["agreement"] is None


def test_more_digests_may_be_added(tmp_path: Path) -> None:
    digests = {**results()["digests"], "teacher": "t"}
    assert folder(tmp_path).finish(results(digests=digests))["digests"]["teacher"] == "t"


def test_a_failed_run_states_why_and_the_next_attempt_starts_clean(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.start("", [])
    run.checkpoints.mkdir()
    run.fail("x is too large", "Traceback ...")
    assert run.results() == {"schema_version": 1, "status": "failed", "config_hash": HASH, "reason": "x is too large"}
    assert (run.path / "traceback.txt").read_text() == "Traceback ..."
    assert not run.done
    run.start("", [])
    assert not (run.path / "results.json").exists()
    assert not (run.path / "traceback.txt").exists()
    assert run.checkpoints.exists()


def test_set_aside_renames_and_never_deletes(tmp_path: Path) -> None:
    run = folder(tmp_path)
    assert run.set_aside() is None
    for content in ("first", "second"):
        run.write_text("config.yaml", content)
        run.set_aside()
    assert not run.path.exists()
    assert (tmp_path / f"toy-{HASH}.old-1" / "config.yaml").read_text() == "first"
    assert (tmp_path / f"toy-{HASH}.old-2" / "config.yaml").read_text() == "second"


# --- killed while writing ------------------------------------------------------------------------------------

KILLED_AT_REPLACE = """
    import os, signal, sys
    from kd.runs.folder import RunFolder
    replace, count = os.replace, 0
    def replace_or_die(source, target):
        global count
        count += 1
        if count > int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = replace_or_die
    run = RunFolder(sys.argv[1])
    {act}
"""


def test_a_file_is_old_or_new_when_the_writer_is_killed(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.write_text("config.yaml", "old")
    killed = process(KILLED_AT_REPLACE.format(act='run.write_text("config.yaml", "new" * 100_000)'), run.path, 0)
    assert killed.wait() == -signal.SIGKILL
    assert (run.path / "config.yaml").read_text() == "old"
    assert len(list(run.path.iterdir())) == 2  # the temporary file is left ...
    run.start("new", [])
    assert not list(run.path.glob(".*.tmp"))  # ... until the run starts again


def test_killed_between_results_and_done_is_not_done(tmp_path: Path) -> None:
    run = folder(tmp_path)
    finish = f"run.finish({results()!r})"
    killed = process(KILLED_AT_REPLACE.format(act=finish), run.path, 1)
    assert killed.wait() == -signal.SIGKILL
    assert run.results()["status"] == "done"
    assert not run.done


# --- one process at a time -----------------------------------------------------------------------------------

HOLDER = """
    import sys
    from kd.runs.folder import RunFolder
    with RunFolder(sys.argv[1]).lock():
        print("held", flush=True)
        sys.stdin.read()
"""


def test_a_second_run_names_the_process_that_holds_the_folder(tmp_path: Path) -> None:
    run = folder(tmp_path)
    holder = process(HOLDER, run.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"toy-{HASH} is in use by process {holder.pid} on .*; wait"), run.lock():
        pass
    holder.kill()
    holder.wait()
    with run.lock():  # a dead process holds nothing
        run.set_aside()
        with pytest.raises(BlockingIOError), folder(tmp_path).lock():  # held although the folder has moved away
            pass
    with run.lock():
        pass


def test_a_run_that_several_jobs_need_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path)
    holder = process(HOLDER, run.path)
    assert holder.stdout is not None
    holder.stdout.readline()
    Timer(0.3, holder.kill).start()
    with run.lock(wait=True):
        assert holder.wait() == -signal.SIGKILL
    assert f"in use by process {holder.pid} on" in capsys.readouterr().err


def a_folder_of_that_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGED = {
    "another digit": (lambda path: path.write_text(path.read_text().replace("0.25", "0.15")), "changed or damaged"),
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "changed or damaged"),
    "missing": (Path.unlink, "is missing, though the run is DONE"),
    "a folder": (a_folder_of_that_name, "is missing, though the run is DONE"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED)
def test_the_value_that_a_sweeper_minimises_is_read_as_it_was_written(tmp_path, damage, says):
    """From the metrics.csv of a run that was DONE before: a search would go on from another number without a word."""
    run = folder(tmp_path)
    TidyLogger(run.path).log_metrics({"validation/forward_kl": 0.25}, step=3)
    run.finish(results())
    assert last_value(run.path, "validation/forward_kl") == 0.25
    damage(run.path / "metrics.csv")
    with pytest.raises(ValueError, match=rf"metrics\.csv .*{says}.*run\.force=true"):
        last_value(run.path, "validation/forward_kl")


def test_a_run_without_metrics_or_of_before_they_were_recorded_has_none(tmp_path):
    run = folder(tmp_path)
    run.finish(results())
    assert last_value(run.path, "validation/forward_kl") is None
    (run.path / "DONE").write_text("\n".join((run.path / "DONE").read_text().split()[:2]) + "\n")
    TidyLogger(run.path).log_metrics({"validation/forward_kl": 0.5}, step=3)
    assert last_value(run.path, "validation/forward_kl") == 0.5
    assert run.results()["status"] == "done"
