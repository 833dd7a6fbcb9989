"""Sweeps on clusters: submitit's local executor and a Slurm of shell scripts, Ray on this machine."""

import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.kd_launcher.cluster import ClusterJob, waves
from hydra_plugins.kd_launcher.ray_launcher import RayLauncher
from hydra_plugins.kd_launcher.submitit_launcher import SubmititLauncher
from tests.sweeps.test_sweeps import (
    place_app,
    records,
    run,
    start,
    statuses,
    sweeps,
    wait_for,
    wait_for_end,
    wait_for_status,
)

submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="submitit is not installed (extra `submitit`)")
ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`)")
LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.at_once=3")
RAY = ("hydra/launcher=ray", "hydra.launcher.num_cpus=0.5")
EACH = pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(LOCAL, marks=submitit, id="submitit"),
        pytest.param(RAY, marks=[ray, pytest.mark.long], id="ray"),
    ],
)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return place_app(tmp_path)


# --- a sweep ---------------------------------------------------------------------------------------------------


@EACH
def test_a_lost_job_stops_no_other_and_what_is_done_is_not_submitted(launcher: tuple[str, ...], app: Path) -> None:
    home = app / "home"
    home.mkdir()
    assert run(app, "x=2").returncode == 0
    ended = run(app, "-m", *launcher, "behaviour=crash,kill,ok", "x=2,3", HOME=str(home))
    assert ended.returncode == 1, ended.stderr
    (sweep,) = sweeps(app)
    found = records(sweep)
    assert [one["overrides"][0] for one in found] == [
        f"behaviour={b}" for b in ("crash", "crash", "kill", "kill", "ok", "ok")
    ]
    assert [one["status"] for one in found] == ["failed"] * 4 + ["skipped", "done"]
    assert [one["objective"] for one in found] == [None] * 5 + [9.0]
    assert found[0]["reason"] == "RuntimeError: the machine is on fire"
    assert found[2]["reason"] == f"killed by SIGKILL (its output is in {sweep}/jobs/2.log)"
    assert not (sweep / "jobs" / "4.log").exists()  # DONE before
    assert "bits per byte" in (sweep / "jobs" / "5.log").read_text()
    table = ended.stdout[ended.stdout.index("6 jobs") :]
    assert "9.00 [8.00, 10.0]" in table
    assert "4.00 [3.00, 5.00]" in table
    assert list(home.iterdir()) == []  # no token, no settings


@EACH
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_ends_the_jobs_too(number: signal.Signals, launcher: tuple[str, ...], app: Path) -> None:
    process = start(app, "-m", *launcher, "behaviour=ok,hang", HOME=str(app))
    wait_for(app, "outputs/toy-*/hanging")
    wait_for_status(app, "done")
    pids = [json.loads(path.read_text())["pid"] for path in app.glob("outputs/toy-*/seen.json")]
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    wait_for_end(pids)
    assert statuses(sweeps(app)[0]) == ["done", "interrupted"]
    assert out.strip().splitlines()[-1].strip().endswith("behaviour=ok,hang")


SLURM = {
    "sbatch": """
        number=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        cp "$1" "$FAKE/array-$number"
        echo "Submitted batch job 77$number"
        for i in $(seq 0 ${number:-0}); do
            (export SLURM_JOB_ID=5$i SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
             export SLURM_ARRAY_JOB_ID=77$number SLURM_ARRAY_TASK_ID=$i
             bash "$1" > /dev/null 2>&1 &)
        done
    """,
    "srun": """
        while [ "${1#--}" != "$1" ]; do
            case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
        done
        exec "$@"
    """,
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": "true",
}


@submitit
def test_slurm_gets_one_array_with_the_resources_of_a_node(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of Slurm are shell scripts here, which start what they are given. Ranks are left to the run."""
    commands = app / "commands"
    commands.mkdir()
    for name, text in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(stat.S_IRWXU)
    variables = {"PATH": f"{commands}:{os.environ['PATH']}", "FAKE": str(app)}
    line = ("hydra/launcher=submitit_slurm", "+trainer={accelerator: gpu, devices: 2}", "hydra.launcher.account=mine")
    ended = run(app, "-m", *line, "x=2,3", **variables)
    assert ended.returncode == 0, ended.stderr
    (sweep,) = sweeps(app)
    assert [one["objective"] for one in records(sweep)] == [4.0, 9.0]
    options = dict(
        word.removeprefix("#SBATCH --").partition("=")[::2]
        for word in (app / "array-1").read_text().splitlines()
        if word.startswith("#SBATCH")
    )
    asked = {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "2", "cpus-per-task": "16", "mem": "128GB"}
    given = {"array": "0-1%2", "time": "1440", "signal": "USR2@120", "account": "mine"}
    assert {name: options[name] for name in asked | given} == asked | given


# --- what a job takes ------------------------------------------------------------------------------------------


def job(trainer: dict[str, Any], first: bool = False) -> ClusterJob:
    return ClusterJob(0, [], OmegaConf.create({"trainer": trainer}), Path("sweep"), first)


def slurm(**resources: Any) -> SubmititLauncher:
    found = SubmititLauncher("slurm", cpus_per_device=8, mem_gb_per_device=64, **resources)
    found.config = OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}})
    return found


NAMES = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb")


@pytest.mark.parametrize(
    ("trainer", "takes"),
    [
        ({"accelerator": "cpu", "devices": 1}, (1, 1, 0, 8, 64)),
        ({"accelerator": "gpu", "devices": 8}, (1, 1, 8, 64, 512)),  # the run starts its eight ranks
        ({"accelerator": "gpu", "devices": [0, 1]}, (1, 1, 2, 16, 128)),
        ({"accelerator": "gpu", "devices": 8, "num_nodes": 4}, (4, 8, 8, 8, 512)),  # Slurm starts them
    ],
)
def test_resources_follow_from_the_trainer(trainer: dict[str, Any], takes: Sequence[int]) -> None:
    found = slurm().parameters(job(trainer))
    assert tuple(found[name] for name in NAMES) == tuple(takes)
    first = slurm().parameters(job(trainer, first=True))
    gpu = int(trainer["accelerator"] == "gpu")
    assert tuple(first[name] for name in NAMES) == (1, 1, gpu, 8, 64)  # prerequisites use one device
    cpus = trainer["devices"] if isinstance(trainer["devices"], int) else len(trainer["devices"])
    if "num_nodes" not in trainer:
        assert RayLauncher().takes(job(trainer)) == {"num_cpus": cpus, "num_gpus": gpu * cpus, "resources": None}


def test_given_resources_count_more_than_the_trainer() -> None:
    found = slurm(gpus_per_node=4, mem_gb=7, timeout_min=5, account=None).parameters(job({"accelerator": "cpu"}))
    assert (found["gpus_per_node"], found["mem_gb"], found["timeout_min"]) == (4, 7, 5)
    assert "account" not in found


def test_ray_starts_no_job_on_several_machines() -> None:
    with pytest.raises(SystemExit, match=r"trainer.num_nodes=2.*take hydra/launcher=submitit_slurm"):
        RayLauncher().takes(job({"num_nodes": 2}))


# --- before jobs -----------------------------------------------------------------------------------------------


def test_what_several_jobs_need_is_made_once() -> None:
    """A teacher for all, a baseline for each seed; where making one fails, it is not tried for each job."""
    lacking = {name: {Path("teacher"), Path(f"sft-{name[-1]}")} for name in ("fkl-1", "rkl-1", "fkl-2", "rkl-2")}
    found, made, fails = list[list[str]](), set[Path](), Path("sft-1")

    def needs(name: str) -> set[Path]:
        return lacking.get(name, set()) - made

    for wave in waves([*lacking, "jsd-3"], needs):
        found.append(wave)
        made.update(set().union(*(lacking[name] for name in wave)) - {fails})
    assert found == [["fkl-1"], ["fkl-2"]]


@pytest.mark.parametrize(
    ("launcher", "package", "name"),
    [
        (SubmititLauncher("slurm"), "submitit", "submitit_slurm"),
        (SubmititLauncher("local"), "submitit", "submitit_local"),
        (RayLauncher(), "ray", "ray"),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(
    launcher: SubmititLauncher | RayLauncher, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        launcher.check()
    assert ended.value.code == (
        f"hydra/launcher={name} needs the package {package}; install it with pip install -e '.[{package}]'"
    )


@submitit
def test_a_machine_without_slurm_is_named_before_any_job(app: Path) -> None:
    ended = run(app, "-m", "hydra/launcher=submitit_slurm", "x=1,2", PATH=str(app))
    assert ended.returncode == 1
    assert ended.stderr == (
        "hydra/launcher=submitit_slurm: sbatch is not on this machine; start the sweep on a login node of the cluster, "
        "or take hydra/launcher=submitit_local\n"
    )


@ray
@pytest.mark.long
def test_a_job_that_this_machine_can_never_run_is_refused(app: Path) -> None:
    ended = run(app, "-m", "hydra/launcher=ray", "hydra.launcher.num_gpus=64", "x=1", HOME=str(app))
    assert ended.returncode == 1
    assert "job 0 takes 64 GPUs, and this machine has 0; set hydra.launcher.num_gpus" in ended.stderr
