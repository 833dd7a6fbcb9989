"""How jobs and ranks are started: every launcher makes the same runs, and ranks that were started from outside
(torchrun) find their prerequisites, or require them.
"""

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from kd.experiment.launch import check_launch
from kd.experiment.plan import Plan
from kd.models.language_model import LanguageModel
from kd.program import ranks_started
from kd.teachers.white_box import WhiteBox
from tests.runs import SMALL, shared

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = [word for word in SMALL if not word.startswith("teacher.prepare")]
RUN = [
    *("run.py", "teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=40", "teacher.prepare.steps=2"),
    *("evaluation=quick", *TINY, "optim.steps=3"),
]
SWEEP = [
    "run.py",
    "-m",
    *RUN[1:],
    "objective=fkl,rkl",
    "trainer=cpu",
    "teacher._target_=tests.sweeps.test_launchers.Noted",
]
OTHERS = {
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray"],
}
CLUSTERS = {"submitit_local": "submitit", "ray": "ray"}  # and the packages that they need


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {"KD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words, f"run.root={tmp_path / 'outputs'}"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)


def test_what_comes_before_ranks_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["teacher=tiny", "student=tiny", "trainer=ddp_cpu", f"run.root={tmp_path}"])
        check_launch(Plan.of(cfg))  # Lightning will start the second rank
        monkeypatch.setenv("WORLD_SIZE", "2")
        refusal = r"preparation of the teacher and the run beside it \(compare=sft\).*run.prerequisites_only=true"
        with pytest.raises(ValueError, match=refusal):
            check_launch(Plan.of(cfg))
        cfg.teacher.prepare = cfg.compare = None
        check_launch(Plan.of(cfg))


@pytest.mark.parametrize(
    ("trainer", "variables", "refusal"),
    [
        (
            "cpu",
            {"RANK": "0", "WORLD_SIZE": "2"},
            "trainer.devices=1 makes a run of 1, so that the same would be trained",
        ),
        ("cpu", {"SLURM_NTASKS": "2"}, "take trainer.devices=2 trainer.strategy=ddp"),
        ("ddp_cpu", {"WORLD_SIZE": "4"}, "4 ranks were started from outside .* makes a run of 2"),
        ("cpu", {"RANK": "1"}, "another rank than the first, and only one was started"),
        ("cpu", {"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, "unset the variable"),
        ("ddp_cpu", {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, None),  # as Lightning starts it
        ("cpu", {"RANK": "0", "WORLD_SIZE": "1"}, None),
    ],
)
def test_ranks_that_would_each_train_the_same_are_refused(
    trainer: str, variables: dict[str, str], refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    GlobalHydra.instance().clear()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = ["teacher=tiny", "teacher.prepare=null", "student=tiny", "compare=null", f"trainer={trainer}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=words)
        if refusal is None:
            check_launch(Plan.of(cfg))
        else:
            with pytest.raises(ValueError, match=refusal):
                check_launch(Plan.of(cfg))


@pytest.mark.long
def test_torchrun_after_its_prerequisites(tmp_path: Path) -> None:
    """The command that the refusal names; then both ranks learn one run."""
    before = run(tmp_path, *RUN, "trainer=ddp_cpu", "run.prerequisites_only=true")
    assert before.returncode == 0, before.stderr[-3000:]
    done = run(tmp_path, *TORCHRUN, *RUN, "trainer=ddp_cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    both = {path.parent.name: json.loads((path.parent / "results.json").read_text()) for path in found(tmp_path)}
    assert {name.split("-")[1] for name in both} == {"sft", "fkl"}
    assert len({results["digests"]["initial_weights"] for results in both.values()}) == 1


def found(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs").glob("*/DONE"))


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS": "8"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, 1),
    ],
)
def test_ranks_started(variables: dict[str, str], ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks_started() == ranks


# ---- sweeps ----------------------------------------------------------------------------------------------------------


class Noted(WhiteBox):
    """A teacher whose loading is noted, with the process in which it was, in the folder `teachers` of the cache."""

    def __init__(self, model: LanguageModel):
        super().__init__(model)
        folder = Path(os.environ["KD_CACHE"]) / "teachers"
        folder.mkdir(exist_ok=True)
        with (folder / str(os.getpid())).open("a") as file:
            file.write("loaded\n")


def swept(folder: Path, *launcher: str) -> str:
    """What two jobs, the run beside them and the preparation of their teacher say, made in `folder`."""
    folder.mkdir()
    done = run(folder, *SWEEP, *launcher)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout


def made(folder: Path) -> dict[str, Any]:
    """By run: results.json without clocks and memory, and the student's weights."""
    pages = {}
    for run_folder in (path.parent for path in found(folder)):
        page = json.loads((run_folder / "results.json").read_text())
        for measured in ("seconds", "peak_memory_bytes"):
            page["budget"].pop(measured)
        for one in page["efficiency"].values():
            one.pop("tokens_per_second")
        weights = (run_folder / "student" / "model.safetensors").read_bytes()
        pages[run_folder.name] = {**page, "weights": hashlib.sha256(weights).hexdigest()}
    return pages


def teachers(folder: Path) -> list[int]:
    """How many each process has loaded."""
    return sorted(len(path.read_text().splitlines()) for path in (folder / "cache" / "teachers").iterdir())


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep by the default launcher: a process per job."""
    return shared(tmp_path_factory, "by_processes", swept)


@pytest.mark.long
@pytest.mark.parametrize("launcher", OTHERS)
def test_every_launcher_makes_the_same_runs(launcher: str, by_processes: Path, tmp_path: Path) -> None:
    """Bit for bit, from caches of their own; in one process with one teacher, which no run changes."""
    if find_spec(CLUSTERS.get(launcher, "kd")) is None:
        pytest.skip(f"{CLUSTERS[launcher]} is not installed (extra `{CLUSTERS[launcher]}`)")
    output = swept(tmp_path / launcher, *OTHERS[launcher])
    runs = made(tmp_path / launcher)
    assert {name.split("-")[1] for name in runs} == {"sft", "fkl", "rkl"}
    assert runs == made(by_processes)
    assert len({page["weights"] for page in runs.values()}) == 3
    assert teachers(by_processes) == [1, 1]
    if launcher == "basic":
        assert teachers(tmp_path / launcher) == [1]
        assert output.count("once for all runs") == 1
        assert output.count("cached: ") == 0
    if launcher in CLUSTERS:  # one job for teacher and baseline of both, before them
        (sweep,) = (tmp_path / launcher / "outputs" / "sweeps").iterdir()
        logs = {path.relative_to(sweep).parent: path.read_text() for path in sweep.rglob("jobs/*.log")}
        assert [path.name for path in sweep.glob("prerequisites/jobs/*.json")] == ["0.json"]
        assert logs[Path("prerequisites/jobs")].count("once for all runs") == 1
        assert "once for all runs" not in logs[Path("jobs")]
        assert output.index("── prerequisites of job 0") < output.index("── job 0") < output.index("── job 1")
