"""Ranks that somebody else has started (torchrun): what comes before them is made by one process, or asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from kd.experiment import check_launch
from kd.run_folder import ranks_started
from tests.runs import SMALL

ROOT = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = [word for word in SMALL if not word.startswith("teacher.prepare")]
RUN = [
    *("run.py", "teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=40", "teacher.prepare.steps=2"),
    *("evaluation=quick", *TINY, "optim.steps=3"),
]


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {"KD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words, f"run.root={tmp_path / 'outputs'}"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)


def test_what_comes_before_ranks_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["teacher=tiny", "student=tiny", "trainer=ddp_cpu", f"run.root={tmp_path}"])
        check_launch(cfg)  # Lightning will start the second rank
        monkeypatch.setenv("WORLD_SIZE", "2")
        told = r"preparation of the teacher and the run beside it \(compare=sft\).*run.prerequisites_only=true"
        with pytest.raises(ValueError, match=told):
            check_launch(cfg)
        cfg.teacher.prepare = cfg.compare = None
        check_launch(cfg)


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
