"""The wheel is enough: `kd` in an empty folder of another project does what `python run.py` does in the clone.

Run: python -m pytest tests/test_wheel.py
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
RUN = (
    *("teacher=tiny", "student=tiny", "skill=spell_backward", "teacher.prepare=null", "trainer=cpu", "optim.steps=2"),
    *("compare=null", "evaluation=none", "skill.train=32", "skill.validation=8", "skill.test=8"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the backend that the extra `dev` installs."""
    pytest.importorskip("hatchling", reason="the extra `dev` is not installed as pyproject.toml has it")
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(ROOT)], check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def kd(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console command in an environment that has the wheel, and this one's packages after it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "after.pth").write_text(sysconfig.get_path("purelib") + "\n")  # no .pth file of it is read: no clone
    return folder / "bin" / "kd"


def run(kd: Path, words: list[str], where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(kd.parent), os.environ["PATH"]])
    return subprocess.run(
        words, cwd=where, env=outside | {"PATH": path} | environment, capture_output=True, text=True, timeout=540
    )


def test_the_wheel_holds_all_yamls_and_modules(wheel: Path) -> None:
    tracked = subprocess.check_output(["git", "ls-files", "kd", "conf", "hydra_plugins"], cwd=ROOT, text=True)
    numbers = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*/published.yaml")]
    files = [re.sub("^(conf|experiments)/", r"kd/\1/", path) for path in [*tracked.splitlines(), *numbers]]
    assert numbers
    assert len(files) > 300
    assert set(files) <= set(ZipFile(wheel).namelist())


@pytest.mark.usefixtures("wheel")
def test_installed_editable_the_clone_itself_is_read(tmp_path: Path) -> None:
    """A copy of conf/ in the environment would go stale."""
    code = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    name = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip()
    with ZipFile(tmp_path / name) as archive:
        (path,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        assert archive.read(path).decode().strip() == str(ROOT)


def test_the_console_command_is_the_function_that_run_py_calls(wheel: Path) -> None:
    (folder,) = (path for path in ZipPath(ZipFile(wheel)).iterdir() if path.name.endswith(".dist-info"))
    (entry,) = PathDistribution(folder).entry_points.select(group="console_scripts")  # type: ignore[arg-type]
    assert entry.name == "kd"
    assert entry.load() is import_module("run").start


def test_a_refusal_is_one_sentence(kd: Path, tmp_path: Path) -> None:
    done = run(kd, ["kd", "objective=FKL"], tmp_path)
    assert done.returncode == 1
    assert "did you mean fkl?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_tab_completes_the_console_command(kd: Path, tmp_path: Path) -> None:
    line = "kd objective=rk"
    script = (
        'eval "$(kd -sc install=bash)"; '
        f'COMP_LINE="{line}"; COMP_POINT={len(line)}; COMP_CWORD=1; '
        'hydra_bash_completion 2> /dev/null; echo "${COMPREPLY[@]}"; complete -p kd'
    )
    completed, registered = run(kd, ["bash", "-c", script], tmp_path).stdout.splitlines()
    assert completed.split() == ["objective=rkd", "objective=rkl", "objective=rkl_student_topk"]
    assert registered.endswith("-F hydra_bash_completion kd")


@pytest.mark.long
def test_a_refusal_shows_the_command_that_was_typed(kd: Path, tmp_path: Path) -> None:
    done = run(kd, ["kd", "teacher=none", "student=tiny"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(", as in: kd student=tiny teacher=tiny"), done.stderr


@pytest.mark.long
def test_a_run_and_a_sweep_in_an_empty_folder(kd: Path, tmp_path: Path) -> None:
    """The sweep skips what is DONE; its other job, of a file in an installed package, is the same command once more."""
    done = run(kd, ["kd", *RUN], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (path for path in (tmp_path / "outputs").iterdir() if (path / "DONE").exists())
    assert (folder / "student" / "model.safetensors").exists()
    assert f"Page: outputs/{folder.name}/report.html" in done.stdout.splitlines()
    assert "<title>" in (folder / "report.html").read_text()
    package = tmp_path / "packages" / "theirs"
    (package / "objective").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    described = (ROOT / "conf" / "objective" / "rkl.yaml").read_text()
    (package / "objective" / "mine.yaml").write_text(described.replace("rkl:", "mine:", 1))
    words = ["kd", "-m", *RUN, "hydra.searchpath=[pkg://theirs]", "objective=fkl,mine"]
    swept = run(kd, words, tmp_path, PYTHONPATH=str(package.parent))
    assert swept.returncode == 0, swept.stderr[-3000:]
    (page,) = (line.removeprefix("Page: ") for line in swept.stdout.splitlines() if line.startswith("Page: "))
    assert (tmp_path / page).is_file()
    assert Path(page).parts[:2] == ("outputs", "sweeps")
    (other,) = (path for path in (tmp_path / "outputs").glob("*/DONE") if path.parent != folder)
    assert "-mine-" in other.parent.name
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "sweeps").glob("*/jobs/*.json")]
    assert sorted(record["status"] for record in records) == ["done", "skipped"]
