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
SMALL = ["teacher=tiny", "student=tiny", "skill=spell_backward", "skill.train=40", "teacher.prepare.steps=2"]
SHORT = ["optim.steps=2", "optim.window=2", "evaluation=quick", "checkpoint.records=2", "trainer.precision=32-true"]
GRID = ["skill=spell_backward", "skill.train=40", "hydra.sweeper.params.seed=1", "data.lm_window=2"]
PREPARED = ["teacher.prepare.steps=2", "student.prepare.steps=2"]
BY_PROCESSES = "python run.py -m objective=rkl,fkl"  # left to the default launcher; the other sweeps are in one process
REPORTS = "python -m kd.reports outputs"  # run on outputs that are there
# One command of each kind is among the shorter tests. The others go through what tests/methods, tests/rollouts,
# tests/skills, test_two_tokenizers, test_targets_refused and test_ensemble_run do as well; `make run` is the first one.
LONG = (
    *("student=lora", "experiment=", "-m method=", "rollout=offline,on_policy", "method=seqkd", "teacher=ensemble"),
    *("objective=ab,akl,taid,minilm2", "rollout=ranked", "rollout=replay", "skill=reasoning_gym", "start: 1, end: 0"),
    *(
        "alignment=spans",
        "targets.tail=tail_bucket",
        "skill=mixture",
        "skill.path=docs",
        "objective=rkl,fkl",
        "kd.doctor",
        "logger=wandb",
    ),
    *("trainer=ddp_cpu", "objective=[fkl,sft]", "objective.jsd.loss.beta=0.9", "kd.cache", "kd.elicit"),
)
ENSEMBLE = ("first", "second")  # the members of conf/teacher/ensemble.yaml


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in fenced("bash") for line in block.splitlines() if line.startswith("python ")]
REFUSED = re.findall(r"\$ (python .*)\n(.*)", "\n".join(fenced("console")))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    command: str, more: list[str], environment: dict[str, str], where: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *shlex.split(command.replace("glob(*,", "glob([j*,x*],"))[1:], *more]  # two skills
    return subprocess.run(
        words, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200
    )


def shortened(command: str, tmp_path: Path) -> list[str]:
    """What is appended to `command` so that it ends in seconds."""
    if "kd.cache" in command or "kd.elicit" in command:
        return [*[word for word in SMALL if word.partition("=")[0] not in command], *SHORT]
    if "run.py" not in command:
        return []
    return [*smallest(command), *SHORT, *launcher(command), f"run.root={tmp_path}"]


def smallest(command: str) -> list[str]:
    """Models, data and preparations."""
    if "first_run" in command:
        return ["skill.train=40", "teacher.prepare.steps=2"]
    if "skill_grid" in command:
        return ["teacher.prepare.steps=2"]
    if "experiment=" in command:
        return [*GRID, *PREPARED]
    if "teacher=ensemble" in command:
        return [f"teacher.members.{name}.prepare.steps=2" for name in ENSEMBLE]
    if "student=lora" in command or command == "python run.py":
        return []
    return [word for word in SMALL if word.partition("=")[0] not in command]


def launcher(command: str) -> list[str]:
    sweeps = "-m" in command.split() or "experiment=" in command
    return ["hydra/launcher=basic"] if sweeps and command != BY_PROCESSES else []


def marks(command: str) -> list[pytest.MarkDecorator]:
    is_long = command == "python run.py" or any(words in command for words in LONG)
    long = [pytest.mark.long] if is_long else []
    return [*long, pytest.mark.archive] if needs_archive(command) else long


def needs_archive(command: str) -> bool:
    return "student=lora" in command or command in ("python run.py", "python -m kd.doctor -n 1")


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=marks(command)) for command in COMMANDS if command != REPORTS]
)
def test_command_runs(command: str, tmp_path: Path, cache: Path) -> None:
    # what needs the archive finds it in the user's cache; everything else starts from an empty one
    environment = {} if needs_archive(command) else {"KD_CACHE": str(cache)}
    done = run(command, shortened(command, tmp_path), environment)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    folders = [path for path in tmp_path.iterdir() if (path / "DONE").exists()] if "run.py" in command else []
    assert folders or "run.py" not in command
    for folder in folders:
        assert (folder / "student" / "model.safetensors").exists()


@pytest.mark.long
def test_reports_of_runs_are_their_tables(tmp_path: Path, cache: Path) -> None:
    """A root's table names its runs, a run's the systems that it measured."""
    assert REPORTS in COMMANDS
    outputs, environment = tmp_path / "outputs", {"KD_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    made = run("python run.py", [*SMALL, *SHORT, f"run.root={outputs}"], environment)
    assert made.returncode == 0, made.stderr[-3000:]
    (sft,), (fkl,) = ([path.name for path in outputs.glob(f"*-{name}-*")] for name in ("sft", "fkl"))
    done = run(REPORTS, [f"outputs/{fkl}", "--out", "tables"], environment, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    of_root, _, of_run = (tmp_path / "tables" / "tables.md").read_text().rpartition("### ")
    assert re.findall(r"^\| (spell_backward-\S+) \|", of_root, flags=re.MULTILINE) == sorted([sft, fkl])
    rows = ["uniform", "unigram (floor)", "student before", "sft, equal steps", "student, distilled", "teacher"]
    assert re.findall(r"^\| ([a-z].*?) \|", of_run, flags=re.MULTILINE) == [*rows, "gap closed"]
    assert all(re.search(rf"^ +{re.escape(row)} +\S", done.stdout, flags=re.MULTILINE) for row in rows)


@pytest.mark.parametrize(("command", "says"), REFUSED)
def test_a_refusal_is_the_sentence_that_the_readme_shows(command: str, says: str, tmp_path: Path) -> None:
    done = run(command, [f"run.root={tmp_path}"], {})
    assert done.returncode == 1
    assert says.strip() in " ".join(done.stderr.replace(f"run.root={tmp_path} ", "").split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_readme_shows_the_objective_that_it_explains(tmp_path: Path) -> None:
    """The function and the yaml of "Add an objective", as they stand there, make a run."""
    function, description = fenced("python")[0], fenced("yaml")[0]
    imports = (
        "from jaxtyping import Float\nfrom torch import Tensor\nfrom kd.objectives.divergence import kl, log_probs\n\n"
    )
    (tmp_path / "my_losses.py").write_text(imports + function)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "jeffreys.yaml").write_text(description)
    assert yaml.safe_load(description)["jeffreys"]["kind"] == "divergence"
    (shown,) = re.findall(r"^\$ PYTHONPATH=\. (python .*)$", "\n".join(fenced("console")), flags=re.MULTILINE)
    command = shown.replace("my_conf", str(tmp_path / "conf"))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    more = [*SMALL, *SHORT, "compare=null", "trainer=cpu", f"run.root={tmp_path / 'outputs'}"]
    done = run(command, more, {"PYTHONPATH": path, "KD_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1.0 · jeffreys" in done.stdout


def test_make_targets_exist() -> None:
    targets = re.findall(r"^make (\S+)", "\n".join(fenced("bash")), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets[:2] == ["run", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


EMPTY = ("HOME", "KD_CACHE", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def ci(script: str, tmp_path: Path, **environment: str) -> list[dict[str, str]]:
    """The calls of `make` that a script of .ci makes: their words, and the folders that they would find full."""
    listing = tmp_path / "calls"
    (tmp_path / "make").write_text(
        '#!/usr/bin/env bash\ncall=$(echo "$*"\n'
        + "".join(f'echo "{name} ${name} $(ls -A "${name}" 2>/dev/null | wc -l)"\n' for name in EMPTY)
        + f')\necho "$call" >> {listing}\n'  # at once: two may run side by side
    )
    (tmp_path / "make").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run([ROOT / ".ci" / script], env={**os.environ, **environment, "PATH": path}, check=True, timeout=60)
    lines = listing.read_text().splitlines()
    return [
        {"make": lines[i], **dict(line.split(" ", 1) for line in lines[i + 1 : i + 1 + len(EMPTY)])}
        for i in range(0, len(lines), 1 + len(EMPTY))
    ]


def test_ci_starts_as_a_newcomer_does(tmp_path: Path) -> None:
    """The README's two commands, the first one whole, where HOME and every cache are empty folders of their own."""
    places = tmp_path / "tmp"
    places.mkdir()
    full = {name: str(tmp_path) for name in EMPTY}
    calls = ci("run", tmp_path, TMPDIR=str(places), HF_HUB_CACHE=str(tmp_path), **full)
    calls = [
        calls[0],
        *sorted(calls[1:-1], key=lambda call: call["make"]),
        calls[-1],
    ]  # style is checked beside the run
    assert [call["make"].split()[0] for call in calls] == [".venv/installed", "lint", "run", "test"]
    assert re.fullmatch(r"run ARGS=run\.root=\S+", calls[2]["make"])  # no fewer steps, nothing else than the default
    for call in calls:
        found = {name: call[name].rpartition(" ") for name in EMPTY}
        assert all(Path(place).is_relative_to(places) and count == "0" for place, _, count in found.values())
        assert len({place for place, _, _ in found.values()}) == len(EMPTY)
    assert list(places.iterdir()) == []  # nothing stays


def test_every_test_is_in_one_of_the_two_scripts_of_ci(tmp_path: Path) -> None:
    made = [call["make"].split()[0] for script in ("run", "full") for call in ci(script, tmp_path)[-1:]]
    assert made == ["test", "test-long"]
    chosen = []
    for target in made:
        told = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        chosen += re.findall(r"-m pytest .*-m (\"[\w ]+\"|\w+)", told)
    assert chosen == ['"not long"', "long"]
