"""The how-to pages of docs/extending: each shows whole files, and commands that run on them in a folder of its own.

Run: python -m pytest tests/test_extending.py
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd import signals
from kd.doctor.subject import composed
from kd.permission import ALLOW
from tests.documents import ROOT, blocks, commands, files, shell, write

PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
RUNS = [pytest.param(page, command, id=page.stem) for page in PAGES for command in commands(page) if " kd " in command]
FAST = "objective"  # the page whose run is among the shorter tests


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, from which modules are imported; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOW, "")
    before = set(sys.modules)
    yield tmp_path
    for name in [name for name in set(sys.modules) - before if name.partition(".")[0].startswith("my_")]:
        del sys.modules[name]


def test_every_page_has_files_and_a_command() -> None:
    assert {page.stem for page in PAGES} == {param.id for param in RUNS}
    assert all(files(page) for page in PAGES)
    assert all(
        len(files(page)) == sum(len(blocks(page, kind)) for kind in ("python", "yaml", "json")) for page in PAGES
    )


@pytest.mark.parametrize(("page", "command"), RUNS)
def test_what_a_page_shows_is_a_config_that_can_run(page: Path, command: str, folder: Path) -> None:
    """Checked as a command is, before anything is loaded."""
    write(page, folder)
    words = shlex.split(command.partition(" kd ")[2])
    more = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = [word for word in words if "=" in word]
    with composed(overrides, more=more) as cfg:
        assert cfg.optim.steps == 2


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(*p.values, id=p.id, marks=[] if p.id == FAST else [pytest.mark.long]) for p in RUNS],
)
def test_the_command_of_a_page_runs(page: Path, command: str, tmp_path: Path) -> None:
    write(page, tmp_path)
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (path for path in (tmp_path / "outputs").iterdir() if (path / "DONE").exists())
    assert (run / "student" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("skill", "What is the capital of"),
        ("metric", "Spell this word backward"),
        pytest.param("augmentation", "system: Answer with one word.", marks=pytest.mark.long),
    ],
)
def test_records_are_shown_by_the_command_of_a_page(name: str, shown: str, tmp_path: Path) -> None:
    page = ROOT / "docs" / "extending" / f"{name}.md"
    write(page, tmp_path)
    (command,) = (command for command in commands(page) if " kd " not in command)
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert shown in done.stdout


def test_the_page_lists_every_hook_of_an_objective() -> None:
    """Decorators are those of kd.signals; members are looked up by the code."""
    text = (ROOT / "docs" / "extending" / "objective.md").read_text(encoding="utf-8")
    decorators = {n for n, f in vars(signals).items() if (getattr(f, "__doc__", "") or "").startswith("Decorates an")}
    assert set(re.findall(r"^\| `@(\w+)", text, flags=re.MULTILINE)) == decorators
    members = set(re.findall(r"^\| `(\w+)[( ]", text, flags=re.MULTILINE)) - {"student_logits", "tokens"}
    by_decorators = {"check_shapes", "check_group", "in_order", "two_sided", "fades"}
    assert members | {"begins_with"} == signals.HOOKS.keys() - by_decorators
