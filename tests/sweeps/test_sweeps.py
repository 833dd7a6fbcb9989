"""Sweeps of the toy bench in `tests/sweeps/app`, as real programs: what they leave behind and how they end."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kd.reports import runs as reports
from kd.runs.folder import RunFolder
from kd.sweeps.jobs import Job, isolated
from kd.versions import code_digest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("KD_")},
    **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return place_app(tmp_path)


def place_app(folder: Path) -> Path:
    shutil.copytree(HERE / "app", folder / "app")
    shutil.copytree(ROOT / "conf" / "hydra", folder / "app" / "conf" / "hydra")
    sweeper = folder / "app" / "conf" / "hydra" / "sweeper" / "checked.yaml"
    sweeper.write_text(sweeper.read_text().replace("kd.experiment.plan.check", "toy.check"))
    for launcher in (folder / "app" / "conf" / "hydra" / "launcher").iterdir():  # no models, so nothing to prepare
        text = launcher.read_text().replace("prerequisites: true", "prerequisites: false")
        launcher.write_text(text.replace("[kd.command, kd.sweeps.preloaded]", "[kd.sweeps.entry]"))
    return folder / "app"


def with_pace(app: Path) -> Path:
    """The toy bench with a group of which two of three files have the key `depth`."""
    (app / "conf" / "pace").mkdir()
    for name, text in {"none": "{}", "slow": "depth: 1\nshare: 1", "fast": "depth: 2\nshare: 2"}.items():
        (app / "conf" / "pace" / f"{name}.yaml").write_text(text + "\n")
    config = app / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("  - _self_\n", "  - pace: none\n  - _self_\n", 1))
    return app


def start(app: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "run.py", *arguments]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    return subprocess.Popen(command, cwd=app, env={**ENVIRONMENT, **variables}, **options)


def run(app: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start(app, *arguments, **variables)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sweeps(app: Path) -> list[Path]:
    return sorted((app / "outputs" / "sweeps").iterdir())


def records(sweep: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (sweep / "jobs").glob("*.json")]
    return sorted(found, key=lambda record: record["num"])


def statuses(sweep: Path) -> list[str]:
    return [record["status"] for record in records(sweep)]


def seen(sweep: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads((sweep / record["run_folder"] / "seen.json").read_text())


def wait_for(app: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(app.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)


# --- a paper's numbers -----------------------------------------------------------------------------------------

PAPER = """
paper: Squares, Table 1
source: https://example.org/squares
setting: two numbers
metric: bits_per_byte
columns:
  toy: {heading: Toy, skill: toy, higher_is_better: false}
rows:
  - {heading: One, arm: {x: 1}, values: {toy: 1.5}}
  - {heading: Two, arm: {x: 2}, values: {toy: 4.5}, deviation: {toy: 1}}
directions:
  - {better: One, than: Two}
"""


def test_a_sweep_ends_with_its_numbers_beside_those_of_the_paper(app: Path) -> None:
    """The paper is that of the sweep's own config: a run that another sweep made names another, or none."""
    (app / "experiments" / "squares").mkdir(parents=True)
    (app / "experiments" / "squares" / "published.yaml").write_text(PAPER)
    line = ("-m", "x=1,2", "seed=1,2", "run.name=toy-${x}-${seed}", "paper=squares", "hydra/launcher=basic")
    ended = run(app, *line)
    (sweep,) = sweeps(app)
    assert ended.returncode == 0, ended.stderr
    for text in (ended.stdout, (sweep / "sweep.md").read_text()):
        assert "Squares, Table 1" in text
        assert "Directions of Squares, Table 1" in text
    rows = [line for line in (sweep / "sweep.md").read_text().splitlines() if line.startswith(("| One", "| Two"))]
    assert rows[0].startswith("| One | Toy | 1.00")
    assert rows[0].split(" | ")[3:5] == ["1.5", "−0.500"]  # 1² - 1.5
    assert rows[1].split(" | ")[3:5] == ["4.5 ± 1", "−0.500"]
    assert rows[1].endswith("| yes |")  # 4 in 4.5 ± 1
    assert rows[2].startswith("| One > Two | +3.00 | +3.00")  # lower is better


def test_a_paper_that_cannot_be_shown_leaves_the_other_tables(app: Path) -> None:
    (app / "experiments" / "squares").mkdir(parents=True)
    (app / "experiments" / "squares" / "published.yaml").write_text(
        PAPER.replace("x: 2", "x: 7").replace("x: 1", "x: 8")
    )
    ended = run(app, "-m", "x=1,2", "paper=squares", "hydra/launcher=basic")
    assert ended.returncode == 0, ended.stderr
    assert "2 jobs" in ended.stdout
    assert "No table of squares: no run has the settings of a row" in " ".join(ended.stdout.split())


# --- a process per job -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    app = place_app(tmp_path_factory.mktemp("grid"))
    # the variables of a rank zero, as they are where a launcher of ranks started the sweep
    return app, run(app, "-m", "behaviour=crash,kill,ok", "x=2", RANK="0", WORLD_SIZE="2")


def test_a_failed_and_a_killed_job_stop_no_other(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    app, ended = grid
    (sweep,) = sweeps(app)
    assert ended.returncode == 1
    crashed, killed, done = records(sweep)
    assert (crashed["status"], crashed["reason"]) == ("failed", "RuntimeError: the machine is on fire")
    assert (killed["status"], killed["reason"]) == ("failed", "killed by SIGKILL")
    assert (done["status"], done["reason"], done["objective"]) == ("done", None, 4.0)
    assert done["overrides"] == ["behaviour=ok", "x=2"]
    assert done["seconds"] > 0
    assert "the machine is on fire" in (sweep / "jobs" / "0.traceback.txt").read_text()
    assert "Traceback" not in ended.stderr  # one line each instead
    assert json.loads((sweep / crashed["run_folder"] / "results.json").read_text())["status"] == "failed"
    assert (sweep / done["run_folder"] / "DONE").exists()
    assert not (sweep / killed["run_folder"] / "DONE").exists()


def test_the_sweep_ends_with_one_table(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    app, ended = grid
    (sweep,) = sweeps(app)
    table = ended.stdout[ended.stdout.index("3 jobs") :]
    markdown = (sweep / "sweep.md").read_text()
    for text in (table, markdown):
        for words in ("RuntimeError: the machine is on fire", "killed by SIGKILL", "4.00 [3.00, 5.00]"):
            assert words in text
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "failed", "done"]
    assert float(rows[2]["scores.toy.bits_per_byte.after.value"]) == 4.0
    assert rows[2]["behaviour"] == "ok"


def test_jobs_are_counted_with_an_eta(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    heads = re.findall(r"^── job (\d) \((\d) of (\d)\): (.*) · sweep ETA (.*)$", grid[1].stdout, flags=re.MULTILINE)
    assert [head[:3] for head in heads] == [("0", "1", "3"), ("1", "2", "3"), ("2", "3", "3")]
    assert heads[0][3:] == ("behaviour=crash", "after the first job")  # x=2 is the same in all
    assert re.fullmatch(r"\d+\.\d s", heads[2][4])


def test_each_job_is_a_process_without_rank(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    (sweep,) = sweeps(grid[0])
    jobs = [seen(sweep, record) for record in records(sweep)]
    assert len({job["pid"] for job in jobs}) == 3
    assert {job["WORLD_SIZE"] for job in jobs} == {None}


def test_a_sweep_started_again_skips_what_is_done(app: Path) -> None:
    assert run(app, "x=3").returncode == 0
    written = {path: path.stat().st_mtime_ns for path in app.glob("outputs/toy-*/*")}
    again = run(app, "-m", "x=3,4")
    assert again.returncode == 0
    assert statuses(sweeps(app)[-1]) == ["skipped", "done"]
    assert again.stdout.count("── job") == 1  # the skipped one did not even start a process
    assert again.stdout.startswith("1 of 2 jobs are DONE: skipped; run.force=true runs them again\n")
    assert "── job 1 (2 of 2): x=4 · " in again.stdout
    assert "9.00 [8.00, 10.0]" in again.stdout  # and yet stands in the table
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_job_that_is_done_with_results_that_cannot_be_read_fails_and_the_others_go_on(app: Path) -> None:
    assert run(app, "x=3").returncode == 0
    (page,) = app.glob("outputs/toy-*/results.json")
    page.write_text(page.read_text()[:100])
    again = run(app, "-m", "x=3,4")
    assert again.returncode == 1
    assert statuses(sweeps(app)[-1]) == ["failed", "done"]
    reason = records(sweeps(app)[-1])[0]["reason"]
    assert "is DONE, but its results cannot be read" in reason
    assert "results.json is torn" in reason
    assert len(page.read_text()) == 100


def test_what_a_skipped_job_omits_is_known_before_any_starts(app: Path) -> None:
    assert run(app, "x=3").returncode == 0
    again = run(app, "-m", "x=3", "+omits=[the warm-up]")
    assert statuses(sweeps(app)[-1]) == ["skipped"]
    assert "omits of its paper: the warm-up." in again.stdout


def test_a_bad_combination_stops_the_sweep_before_any_job(app: Path) -> None:
    ended = run(app, "-m", "x=1,2,-3", "seed=1")
    assert ended.returncode == 1
    assert ended.stderr.strip() == ("job 2 (x=-3 seed=1): x=-3 is negative; choose x at or above 0; no job was started")
    assert not list(app.glob("outputs/toy-*"))


@pytest.mark.parametrize("launcher", ["process", "basic"])
def test_ctrl_c_lets_the_job_save_and_states_how_to_go_on(launcher: str, app: Path) -> None:
    process = start(app, "-m", "behaviour=ok,hang,fail", f"hydra/launcher={launcher}", "run.force=true")
    wait_for(app, "outputs/toy-*/hanging")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (saved,) = app.glob("outputs/toy-*/checkpoints/last")
    assert saved.read_text() == "saved after 1 signal"
    (sweep,) = sweeps(app)
    assert statuses(sweep) == ["done", "interrupted", "waiting"]
    assert "interrupted" in out[out.index("3 jobs") :]
    assert "interrupted" in (sweep / "sweep.csv").read_text()
    command = out.strip().splitlines()[-1]
    assert command.strip() == f"{sys.executable} run.py -m behaviour=ok,hang,fail hydra/launcher={launcher}"


def test_sigterm_goes_to_the_job_and_ends_the_sweep(app: Path) -> None:
    process = start(app, "-m", "behaviour=hang,ok")
    wait_for(app, "outputs/toy-*/hanging")
    process.send_signal(signal.SIGTERM)  # the toy does not handle this one: it dies of it
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert statuses(sweeps(app)[0]) == ["interrupted", "waiting"]


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_of_joblib_too(number: signal.Signals, app: Path) -> None:
    process = start(app, "-m", *JOBLIB, "behaviour=ok,hang,fail")
    wait_for(app, "outputs/toy-*/hanging")
    wait_for_status(app, "failed")
    pids = [json.loads(path.read_text())["pid"] for path in app.glob("outputs/toy-*/seen.json")]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    wait_for_end(pids)
    assert statuses(sweeps(app)[0]) == ["done", "interrupted", "failed"]
    assert "interrupted" in out[out.index("3 jobs") :]
    assert (
        out.strip()
        .splitlines()[-1]
        .strip()
        .endswith("run.py -m hydra/launcher=joblib hydra.launcher.n_jobs=2 behaviour=ok,hang,fail")
    )


@pytest.mark.parametrize(
    ("launcher", "behaviours"),
    [((), "hang"), (("hydra.launcher.preload=[]",), "hang"), (JOBLIB, "hang")],
    ids=["forked", "interpreter", "joblib"],
)
def test_jobs_end_with_a_sweep_that_was_killed(launcher: tuple[str, ...], behaviours: str, app: Path) -> None:
    process = start(app, "-m", *launcher, f"behaviour={behaviours}", "seed=1,2")
    wait_for(app, "outputs/toy-*/hanging")
    pids = [json.loads(path.read_text())["pid"] for path in app.glob("outputs/toy-*/seen.json")]
    process.kill()
    process.wait()
    wait_for_end(pids)


def wait_for_status(app: Path, status: str) -> None:
    deadline = time.monotonic() + 60
    while status not in statuses(sweeps(app)[0]):
        assert time.monotonic() < deadline, f"no job is {status}"
        time.sleep(0.05)


def wait_for_end(pids: list[int]) -> None:
    """Of processes that are not this one's children."""
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_second_ctrl_c_does_not_wait(app: Path) -> None:
    process = start(app, "-m", "behaviour=hang,ok", "save_seconds=100")
    wait_for(app, "outputs/toy-*/hanging")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # signals that come together are one
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert statuses(sweeps(app)[0]) == ["interrupted", "waiting"]
    assert not list(app.glob("outputs/toy-*/checkpoints/last"))


def test_two_sweeps_started_together_share_no_folder(app: Path) -> None:
    both = [start(app, "-m", "hydra/launcher=basic", f"x={x}") for x in (1, 2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert [statuses(sweep) for sweep in sweeps(app)] == [["done"], ["done"]]


def test_a_sweep_folder_is_never_taken_twice(app: Path) -> None:
    (app / "mine" / "jobs").mkdir(parents=True)
    ended = run(app, "-m", "x=1", "hydra.sweep.dir=mine")
    assert ended.returncode == 1
    assert "mine exists already" in ended.stderr


def test_a_second_rank_does_not_sweep_again(app: Path) -> None:
    ended = run(app, "-m", "x=1,2", LOCAL_RANK="1")
    assert ended.returncode == 1
    assert "hydra/launcher=process" in ended.stderr
    assert not (app / "outputs").exists()


# --- a grid that is no product ------------------------------------------------------------------------------------


def test_arms_are_combined_with_the_rest_of_the_grid(app: Path) -> None:
    arms = 'hydra.sweeper.arms=["x=1 y=2","x=3"]'
    ended = run(app, "-m", "hydra/launcher=basic", arms, "seed=4,5")
    assert ended.returncode == 0, ended.stderr
    (sweep,) = sweeps(app)
    found = [" ".join(record["overrides"]) for record in records(sweep)]
    assert found == ["x=1 y=2 seed=4", "x=1 y=2 seed=5", "x=3 seed=4", "x=3 seed=5"]
    assert [record["objective"] for record in records(sweep)] == [1.0, 1.0, 9.0, 9.0]


def test_a_key_of_the_arms_is_refused_beside_them(app: Path) -> None:
    ended = run(app, "-m", 'hydra.sweeper.arms=["x=1 y=2","x=3"]', "x=5", "seed=4,5")
    assert ended.returncode == 1
    assert ended.stderr == (
        'x=5: the arms of this grid set x; choose among them, as in \'hydra.sweeper.arms=["x=1 y=2","x=3"]\'\n'
    )


# --- the other launchers of one machine leave the same trace ------------------------------------------------


def test_one_process_for_all_isolates_jobs(app: Path) -> None:
    ended = run(app, "-m", "hydra/launcher=basic", "behaviour=leak,fail,exit,ok", KD_OURS="ours")
    assert ended.returncode == 1
    (sweep,) = sweeps(app)
    leak, fail, left, ok = records(sweep)
    assert (leak["status"], ok["status"]) == ("done", "done")
    assert fail["reason"] == "x=1.0 cannot be learned; choose another x"
    assert left["reason"] == "it ended with exit code 3"
    assert seen(sweep, leak)["pid"] == seen(sweep, ok)["pid"]
    assert (seen(sweep, ok)["KD_LEAK"], seen(sweep, ok)["KD_OURS"]) == (None, "ours")
    assert seen(sweep, ok)["dtype"] == "torch.float32"
    assert "── job 3 (4 of 4)" in ended.stdout


def test_one_process_for_all_keeps_no_job_in_memory(app: Path) -> None:
    run(app, "-m", "hydra/launcher=basic", "x=range(1,8)")
    (sweep,) = sweeps(app)
    _, second, *_, last = (seen(sweep, record)["configs"] for record in records(sweep))
    assert last == second


def test_jobs_side_by_side_leave_the_same(app: Path) -> None:
    ended = run(app, "-m", *JOBLIB, "behaviour=crash,ok")
    assert ended.returncode == 1
    (sweep,) = sweeps(app)
    crashed, done = records(sweep)
    assert (crashed["status"], crashed["reason"]) == ("failed", "RuntimeError: the machine is on fire")
    assert (done["status"], done["objective"]) == ("done", 1.0)
    assert (sweep / "jobs" / "0.traceback.txt").exists()
    assert "RuntimeError: the machine is on fire" in ended.stdout[ended.stdout.index("2 jobs") :]


# --- single runs ---------------------------------------------------------------------------------------------


def test_an_error_of_the_user_is_one_sentence(app: Path) -> None:
    ended = run(app, "behaviour=fail", "x=5")
    assert ended.returncode == 1
    assert ended.stderr == "x=5 cannot be learned; choose another x\n"
    (folder,) = app.glob("outputs/toy-*")
    assert "ValueError" in (folder / "traceback.txt").read_text()


def test_a_fault_of_the_program_names_the_file_of_its_traceback(app: Path) -> None:
    ended = run(app, "behaviour=crash")
    assert ended.returncode == 1
    assert ended.stderr.startswith("RuntimeError: the machine is on fire (a fault of the program")
    assert ended.stderr.count("\n") == 1
    (file,) = (app / "outputs").glob("traceback-*.txt")
    assert file.name in ended.stderr
    assert "Traceback" in file.read_text()


def test_two_runs_at_once_do_not_share_a_folder(app: Path) -> None:
    first = start(app, "behaviour=hang")
    wait_for(app, "outputs/toy-*/hanging")
    second = run(app, "behaviour=hang")
    assert second.returncode == 1
    assert f"is in use by process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "Stopped." in out


# --- the job by itself ---------------------------------------------------------------------------------------


def results(value: float) -> dict[str, Any]:
    estimate = {"value": value, "n": 1}
    pair = {"before": estimate, "after": estimate}
    costs = ("student_flops", "tokens", "teacher_tokens", "generated_tokens", "seconds", "peak_memory_bytes")
    return {
        **{"seed": 1, "scores": {"toy": {"accuracy": pair}}, "gap_closed": {}},
        "agreement": {"top1": pair, "forward_kl": pair, "reverse_kl": pair},
        "budget": dict.fromkeys(costs, 1),
        "digests": {"initial_weights": "", "data_order": "", "evaluation_items": ""},
    }


def value_of(page: Mapping[str, Any]) -> float:
    return page["scores"]["toy"]["accuracy"]["after"]["value"]


def test_an_open_wandb_run_does_not_reach_the_next_job() -> None:
    import wandb

    with isolated():
        wandb.init(mode="disabled")
        assert wandb.run is not None
    assert wandb.run is None


def test_done_is_skipped_and_force_keeps_the_old_run(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)

    def attempt(value: float, force: bool = False) -> tuple[float, str]:
        job = Job(["x=1"])
        page = job.run(folder, lambda _: results(value), config_yaml="", force=force)
        return value_of(page), job.status

    assert attempt(1.0) == (1.0, "running")
    assert attempt(2.0) == (1.0, "skipped")
    assert attempt(3.0, force=True) == (3.0, "running")
    old = RunFolder(f"{folder.path}.old-1")
    assert old.done
    assert value_of(old.results()) == 1.0


@pytest.mark.parametrize("code", ["as it is", "another", None])
def test_results_of_other_code_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str | None) -> None:
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    ran = results(1.0) | {"code": code_digest() if code == "as it is" else code}
    for _ in range(2):
        Job([]).run(folder, lambda _: ran, config_yaml="")
    assert ("caution: the code of kd changed since" in capsys.readouterr().out) == (code == "another")


def test_a_skipped_job_shows_what_its_own_method_omits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Methods that resolve to one config share a folder, but not what they lack of their papers."""
    folder, sweep = RunFolder.of(tmp_path, "toy", "0" * 12), tmp_path / "sweeps" / "today"
    omissions = {}
    for num, (method, omits) in enumerate({"a": ["the warm-up"], "b": [], "c": ["the replay"]}.items()):
        job = Job([f"method={method}"], sweep, num)
        page = job.run(folder, lambda _, own=omits: results(1.0) | {"omits": own}, config_yaml="", omits=omits)
        job.end("skipped" if num else "done")
        omissions[method] = [line for line in capsys.readouterr().out.splitlines() if "omits of its paper" in line]
        assert page["omits"] == omits
    assert [len(lines) for lines in omissions.values()] == [1, 0, 1]
    assert omissions["c"][0].strip().endswith("the replay.")
    assert [(job.results or {})["omits"] for job in reports.read_jobs(sweep)] == [["the warm-up"], [], ["the replay"]]
    assert folder.results()["omits"] == ["the warm-up"]


def test_an_unfinished_folder_is_gone_on_with(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    folder.start("", [])
    folder.write_text("checkpoints/last", "half")
    page = Job([]).run(folder, lambda f: results(float((f.checkpoints / "last").exists())), config_yaml="")
    assert value_of(page) == 1.0
    assert folder.done


def test_other_ranks_work_but_do_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    with folder.lock():  # held by rank zero, whose run this is
        assert value_of(Job([], tmp_path, 0).run(folder, lambda _: results(1.0), config_yaml="")) == 1.0
    assert not folder.path.exists()
    assert not (tmp_path / "jobs").exists()
