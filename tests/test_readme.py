"""Every command that the README shows is run; long ones are shortened by overrides that a reader could add."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare.steps=2"]
SHORT = ["optim.steps=2", "optim.window=2", "evaluation=quick", "checkpoint.records=2", "trainer.precision=32-true"]


ENSEMBLE = ("first", "second")  # the members of conf/teacher/ensemble.yaml


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in fenced("bash") for line in block.splitlines() if line.startswith("python ")]
REFUSED = re.findall(r"\$ (python .*)\n(.*)", "\n".join(fenced("console")))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(command: str, more: list[str], tmp_path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *shlex.split(command)[1:], *more]
    return subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=540
    )


def shortened(command: str, tmp_path: Path) -> list[str]:
    """What is appended to `command` so that it ends in seconds."""
    if "kd.cache" in command:
        return [*[word for word in SMALL if word.partition("=")[0] not in command], *SHORT]
    if "run.py" not in command:
        return []
    own_models = re.search(r"student=lora|experiment=", command) or command == "python run.py"
    grid = ["hydra.sweeper.params.seed=1", "skill=spell_backward"] if "experiment=tiny_grid" in command else []
    prepare = ["teacher.prepare.steps=2", "student.prepare.steps=2"] if "experiment=" in command else []
    if "teacher=ensemble" in command:
        prepare = [f"teacher.members.{name}.prepare.steps=2" for name in ENSEMBLE]
        return [*prepare, *SHORT, f"run.root={tmp_path}"]
    small = [word for word in SMALL if word.partition("=")[0] not in command] if not own_models else prepare
    launcher = ["hydra/launcher=basic"] if "-m" in command.split() or grid else []
    return [*small, *SHORT, *grid, *launcher, f"run.root={tmp_path}"]


def marks(command: str) -> list[pytest.MarkDecorator]:
    needs_archive = "student=lora" in command or command in ("python run.py", "python -m kd.doctor -n 1")
    return [pytest.mark.archive] if needs_archive else []


@pytest.mark.parametrize("command", [pytest.param(command, marks=marks(command)) for command in COMMANDS])
def test_command_runs(command: str, tmp_path: Path, cache: Path) -> None:
    # what needs the archive finds it in the user's cache; everything else starts from an empty one
    environment = {} if marks(command) else {"KD_CACHE": str(cache)}
    if command == "python -m kd.reports outputs":
        pytest.skip("shown on a real sweep in tests/reports")
    done = run(command, shortened(command, tmp_path), tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    folders = [path for path in tmp_path.iterdir() if (path / "DONE").exists()] if "run.py" in command else []
    assert folders or "run.py" not in command
    for folder in folders:
        assert (folder / "student" / "model.safetensors").exists()


@pytest.mark.parametrize(("command", "says"), REFUSED)
def test_refusal_says_what_the_readme_shows(command: str, says: str, tmp_path: Path) -> None:
    done = run(command, [f"run.root={tmp_path}"], tmp_path, {})
    assert done.returncode == 1
    assert says.strip() in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_readme_shows_the_objective_that_it_explains(tmp_path: Path) -> None:
    """The function and the yaml of "Add an objective", as they stand there, make a run."""
    function, description = fenced("python")[0], fenced("yaml")[0]
    imports = (
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        "from kd.objectives.divergence import forward_kl, reverse_kl\n\n"
    )
    (tmp_path / "my_losses.py").write_text(imports + function)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "jeffreys.yaml").write_text(description)
    assert yaml.safe_load(description)["jeffreys"]["kind"] == "divergence"
    command = f"python run.py --config-dir {tmp_path / 'conf'} objective=jeffreys"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    more = [*SMALL, *SHORT, "compare=null", "trainer=cpu", f"run.root={tmp_path / 'outputs'}"]
    done = run(command, more, tmp_path, {"PYTHONPATH": path, "KD_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1.0 · jeffreys" in done.stdout


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\S+)", "\n".join(fenced("bash")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets[:2] == ["run", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
