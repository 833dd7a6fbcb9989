"""Studies of the toy bench, whose objective is x², as real programs; and what Hydra's syntax means to Optuna."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.kd_launcher.optuna_sweeper import distribution
from tests.sweeps.test_sweeps import ENVIRONMENT, place_app, records, run, start, statuses, sweeps, wait_for, with_pace

ROOT = Path(__file__).parents[2]
STUDY = ("-m", "hydra/sweeper=optuna")
IN_ONE_PROCESS = (*STUDY, "hydra/launcher=basic")  # which is quicker
MISSING = importlib.util.find_spec("optuna") is None
installed = pytest.mark.skipif(MISSING, reason="optuna is not installed (extra `optuna`)")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = place_app(tmp_path)
    sweeper = folder / "conf" / "hydra" / "sweeper" / "optuna.yaml"
    sweeper.write_text(sweeper.read_text().replace("kd.experiment.plan.check", "toy.check"))
    return folder


def x_of(record: dict[str, Any]) -> float:
    (value,) = (word.partition("=")[2] for word in record["overrides"] if word.startswith("x="))
    return float(value)


# --- a study -------------------------------------------------------------------------------------------------


@installed
def test_two_trials_a_best_and_a_table(app: Path) -> None:
    ended = run(app, *STUDY, "hydra.sweeper.n_trials=2", "x=interval(0.5,3.0)", "seed=7")
    assert ended.returncode == 0, ended.stderr
    (sweep,) = sweeps(app)
    both = records(sweep)
    assert [record["status"] for record in both] == ["done", "done"]
    assert all(0.5 <= x_of(record) <= 3.0 and "seed=7" in record["overrides"] for record in both)
    assert [record["objective"] for record in both] == pytest.approx([x_of(record) ** 2 for record in both])
    heads = re.findall(r"^── job (\d) \((\d) of (\d)\): x=\S+ · sweep ETA", ended.stdout, flags=re.MULTILINE)
    assert heads == [("0", "1", "2"), ("1", "2", "2")]
    best = min(both, key=lambda record: record["objective"])
    assert f"Best: job {best['num']} (x={x_of(best)}) with {best['objective']:.6g}\n" in ended.stdout
    table = ended.stdout[ended.stdout.index("2 jobs") :]
    assert table.count("done") == 2
    assert "done" in (sweep / "sweep.md").read_text()
    assert (sweep / "multirun.yaml").exists()


@installed
@pytest.mark.long
def test_a_metric_of_which_more_is_better_is_maximised(app: Path) -> None:
    words = ("hydra.sweeper.n_trials=3", "x=interval(0.5,3.0)", "seed=7", "+checkpoint.monitor=validation/top1")
    ended = run(app, *IN_ONE_PROCESS, *words)
    assert ended.returncode == 0, ended.stderr
    (sweep,) = sweeps(app)
    best = max(records(sweep), key=lambda record: record["objective"])
    assert f"Best: job {best['num']} (x={x_of(best)}) with {best['objective']:.6g}\n" in ended.stdout


# --- the direction of a study whose fixed keys only the searched files have -----------------------------------


PROGRAM = """
import sys
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from hydra.utils import instantiate

from kd.components.choices import CONF
from kd.composition.overrides import check_overrides, started
from kd.sweeps.jobs import Job
from kd.sweeps.loader import SweepLoader


class Valued:  # a launcher whose jobs have the values 0, 1, ...
    def launch(self, jobs, initial_job_idx):
        value = float(initial_job_idx)
        Job(jobs[0], Path(folder), initial_job_idx, "done", objective=value).write()
        return [JobReturn(_return_value=value, status=JobStatus.COMPLETED)]


_, folder, *words = sys.argv
check_overrides(["-m", "hydra/sweeper=optuna", *words])
with started():
    loader = SweepLoader(create_config_search_path(str(CONF)))
    given = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.mode=MULTIRUN", "hydra.sweep.dir=" + folder]
    config = loader.load_configuration("config", [*given, *words], RunMode.MULTIRUN)
    sweeper = instantiate(config.hydra.sweeper, check="kd.experiment.monitor.direction")
    sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=Callbacks())
    sweeper.config, sweeper.launcher = config, Valued()
    (Path(folder) / "jobs").mkdir()
    sweeper.sweep(words)
"""


@installed
@pytest.mark.parametrize(
    ("monitor", "best"), [("spell_backward/verifier_score", "job 1"), ("validation/bits_per_byte", "job 0")]
)
def test_the_direction_is_that_of_a_job_of_the_space(monitor: str, best: str, tmp_path: Path) -> None:
    """Of the values 0 and 1 the greater is the best of a metric of which more is better."""
    words = ["rollout=on_policy,asynchronous", "rollout.max_new_tokens=8", "optim.lr=interval(1e-4,1e-2)"]
    words += [f"checkpoint.monitor={monitor}", "checkpoint.answers=4", "skill=spell_backward"]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *words]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"Best: {best} " in ended.stdout


@pytest.fixture
def paced(app: Path) -> Path:
    """The toy bench with a group, of which `slow` and `fast` have a key that `none` lacks."""
    return with_pace(app)


@installed
def test_a_metric_is_maximised_also_where_its_jobs_alone_have_a_key(paced: Path) -> None:
    """Hydra composes no job of it without the searched files."""
    words = ("pace=slow,fast", "pace.depth=5", "x=interval(0.5,3.0)", "+checkpoint.monitor=validation/top1")
    ended = run(paced, *IN_ONE_PROCESS, "hydra.sweeper.n_trials=3", "seed=7", *words)
    assert ended.returncode == 0, ended.stderr
    best = max(records(sweeps(paced)[0]), key=lambda record: record["objective"])
    assert f"Best: job {best['num']} " in ended.stdout


@installed
@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            ("pace=none,slow", "pace.depth=5", "x=interval(0.5,3.0)"),
            "pace=none pace.depth=5 x=0.5: the config has no pace.depth",
        ),
        (
            ("x=interval(0.5,3.0)", "+checkpoint.monitor=validation/accuracy"),
            "x=0.5 +checkpoint.monitor=validation/accuracy: checkpoint.monitor=validation/accuracy: validations log no "
            "such metric; take validation/bits_per_byte",
        ),
        (
            ("+checkpoint.monitor=validation/top1,validation/bits_per_byte",),
            "a study has one direction, maximize, and the metric of this job has the other; search only where "
            "checkpoint.monitor is one metric",
        ),
    ],
)
def test_no_direction_is_assumed(words: tuple[str, ...], refusal: str, paced: Path) -> None:
    drawn = ("hydra.sweeper.sampler=RandomSampler", "hydra.sweeper.seed=3")
    ended = run(paced, *IN_ONE_PROCESS, *drawn, *words)
    assert ended.returncode == 1
    assert refusal in ended.stderr
    assert ended.stderr.endswith("; no job was started\n")
    assert ended.stderr.count("\n") == 1


# --- jobs that end badly --------------------------------------------------------------------------------------


@installed
@pytest.mark.long
def test_a_failed_trial_does_not_end_the_study(app: Path) -> None:
    space = ("behaviour=choice(crash,ok)", "x=interval(1.0,2.0)")
    ended = run(app, *IN_ONE_PROCESS, "hydra.sweeper.n_trials=6", *space)
    assert ended.returncode == 1  # as of any sweep with a failed job
    (sweep,) = sweeps(app)
    recorded = records(sweep)
    assert {record["status"] for record in recorded} == {"failed", "done"}
    for record in recorded:
        crashed = "behaviour=crash" in record["overrides"]
        assert (record["status"], record["objective"] is None) == ("failed" if crashed else "done", crashed)
    best = min((record for record in recorded if record["status"] == "done"), key=lambda record: record["objective"])
    assert f"Best: job {best['num']} " in ended.stdout
    assert "6 jobs" in ended.stdout


@installed
@pytest.mark.long
def test_it_learns_where_the_objective_is_small(app: Path) -> None:
    """The first ten trials of TPE are random; the median of x² over [0, 10] is 25, and ten times less is no luck."""
    ended = run(app, *IN_ONE_PROCESS, "hydra.sweeper.n_trials=20", "x=interval(0.0,10.0)")
    assert ended.returncode == 0, ended.stderr
    objectives = [record["objective"] for record in records(sweeps(app)[0])]
    assert median(objectives[10:]) < 2.5


@installed
@pytest.mark.long
def test_the_same_command_goes_on_with_the_study(app: Path) -> None:
    space = ("x=interval(0.5,3.0)", "y=range(1,4)")
    assert run(app, *IN_ONE_PROCESS, *space, "hydra.sweeper.n_trials=2").returncode == 0
    written = {path: path.stat().st_mtime_ns for path in app.glob("outputs/toy-*/*")}
    again = run(app, *STUDY, *space, "hydra.sweeper.n_trials=3")
    assert again.returncode == 0, again.stderr
    first, second = map(records, sweeps(app))
    assert [record["status"] for record in second] == ["skipped", "skipped", "done"]
    for old, new in zip(first, second[:2], strict=True):
        assert (old["overrides"], old["objective"]) == (
            new["overrides"],
            new["objective"],
        )  # which the study learns from
    assert {path: path.stat().st_mtime_ns for path in written} == written


@installed
@pytest.mark.long
def test_a_trial_that_cannot_run_is_not_started(app: Path) -> None:
    """The random sampler with seed 1 draws 0.42, 0.72, 0.0001, 0.30 of the way: the third x is negative."""
    drawn = ("hydra.sweeper.sampler=RandomSampler", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    ended = run(app, *IN_ONE_PROCESS, *drawn, "x=interval(-0.5,2.0)")
    assert ended.returncode == 1
    (sweep,) = sweeps(app)
    recorded = records(sweep)
    assert [record["status"] for record in recorded] == ["done", "done", "failed", "done"]
    assert re.fullmatch(r"x=-0\.\d+ is negative; choose x at or above 0", recorded[2]["reason"])
    assert recorded[2]["run_folder"] is None
    assert len(list(app.glob("outputs/toy-*"))) == 3
    assert "job 2 (x=-0." in ended.stderr
    assert "Traceback" not in ended.stderr


@installed
def test_a_study_that_cannot_begin_is_reported(app: Path) -> None:
    ended = run(app, *STUDY, "x=interval(-2.0,-1.0)")
    assert ended.returncode == 1
    assert re.fullmatch(
        r"job 0 \(x=\S+\): x=\S+ is negative; choose x at or above 0; no job was started\n", ended.stderr
    )
    assert not records(sweeps(app)[0])


@installed
@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("x=1",), "nothing to search; give an interval"),
        (("x=interval(2.0,1.0)",), "x=interval(2.0,1.0): "),
        (("x=1,2", "hydra.sweeper.sampler=Tpe"), "sampler=Tpe: optuna.samplers has no such class"),
        (("x=1,2", "hydra.sweeper.n_trials=0"), "n_trials=0"),
        (("x=1,2", 'hydra.sweeper.arms=["y=1","y=2"]'), "add hydra.sweeper.arms=null and the overrides of one, as y=1"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(words: tuple[str, ...], refusal: str, app: Path) -> None:
    ended = run(app, *STUDY, *words)
    assert ended.returncode == 1
    assert refusal in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_without_optuna_the_remedy_is_named(app: Path) -> None:
    (app / "optuna.py").write_text("raise ModuleNotFoundError(name='optuna')\n")  # stands before an installed one
    ended = run(app, *STUDY, "x=interval(1.0,2.0)")
    assert ended.returncode == 1
    assert ended.stderr == (
        "hydra/sweeper=optuna needs the package optuna; install it with pip install -e '.[optuna]'\n"
    )


def test_a_grid_names_the_sweeper_that_takes_intervals(app: Path) -> None:
    ended = run(app, "-m", "x=interval(1.0,2.0)")
    assert ended.returncode == 1
    assert ended.stderr == "x=interval(1.0,2.0): a grid has no intervals; list values, or add hydra/sweeper=optuna\n"


@installed
@pytest.mark.long
def test_ctrl_c_ends_a_study_and_states_how_to_go_on(app: Path) -> None:
    process = start(app, *STUDY, "hydra.sweeper.n_trials=3", "behaviour=hang", "x=interval(1.0,2.0)")
    wait_for(app, "outputs/toy-*/hanging")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert statuses(sweeps(app)[0]) == ["interrupted", "waiting", "waiting"]
    assert "run.py -m hydra/sweeper=optuna" in out.strip().splitlines()[-1]
    assert "'x=interval(1.0,2.0)'" in out.strip().splitlines()[-1]


# --- the search space ----------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ("x=interval(1e-4,1e-2)", "FloatDistribution", {"low": 1e-4, "high": 1e-2, "log": False}),
        ("x=tag(log,interval(1e-4,1e-2))", "FloatDistribution", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("x=int(interval(1,8))", "IntDistribution", {"low": 1, "high": 8, "step": 1, "log": False}),
        ("x=tag(log,int(interval(1,8)))", "IntDistribution", {"low": 1, "high": 8, "log": True}),
        ("x=range(100,500,100)", "IntDistribution", {"low": 100, "high": 400, "step": 100}),  # 500 is not part of it
        ("x=range(5,0,-2)", "IntDistribution", {"low": 1, "high": 5, "step": 2}),
        ("x=range(0,1,0.25)", "FloatDistribution", {"low": 0.0, "high": 0.75, "step": 0.25}),
        ("x=fkl,[fkl,sft]", "CategoricalDistribution", {"choices": ("fkl", "[fkl,sft]")}),
        ("x=choice(fkl,2)", "CategoricalDistribution", {"choices": ("fkl", "2")}),
    ],
)
def test_search_space(line: str, kind: str, expected: dict[str, Any]) -> None:
    (override,) = OverridesParser.create().parse_overrides([line])
    found = distribution(override)
    assert type(found).__name__ == kind
    assert {name: getattr(found, name) for name in expected} == expected


@installed
@pytest.mark.parametrize("line", ["x=range(3,3)", "x=interval(2,1)", "x=tag(log,interval(0,1))"])
def test_what_is_no_space_is_refused(line: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([line])
    with pytest.raises(ValueError, match=r"empty|low|<="):
        distribution(override)


# --- the bench itself ----------------------------------------------------------------------------------------


@installed
@pytest.mark.long
def test_a_study_of_the_bench(tmp_path: Path) -> None:
    from tests.runs import SMALL  # lazy: torch, which the others do without

    words = [word for word in SMALL if not word.startswith(("optim.lr", "optim.steps"))]
    command = [
        *(sys.executable, "run.py", *STUDY, "hydra.sweeper.n_trials=2", "optim.lr=interval(1e-4,1e-2)", *words),
        *("teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=40", "evaluation=quick"),
        *("optim.steps=4", "compare=null", f"run.root={tmp_path}"),
    ]
    own = {"KD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (sweep,) = (tmp_path / "sweeps").iterdir()
    both = [json.loads(path.read_text()) for path in sorted((sweep / "jobs").glob("*.json"))]
    assert [record["status"] for record in both] == ["done", "done"]
    assert len({record["objective"] for record in both}) == 2
    assert "Best: job" in ended.stdout
    assert "2 jobs" in ended.stdout
