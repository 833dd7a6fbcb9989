"""Messages show the command that the user typed, and a sweep starts its jobs with it.

Run: python -m pytest tests/test_program.py
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from kd import program

WORDS = ["teacher=tiny", "objective=[fkl,sft]"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The console command, found by its name; it is what runs."""
    command = tmp_path / "bin" / "kd"
    command.parent.mkdir()
    command.write_text("#!/usr/bin/env python\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(command), *WORDS, "run.force=true"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
    return command


def test_the_console_command(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program.typed(WORDS) == "kd teacher=tiny 'objective=[fkl,sft]'"
    assert program.again(without="run.force=") == program.typed(WORDS)
    assert program.started_by() == [str(installed)]
    monkeypatch.setenv("PATH", "")  # by name the shell finds another one, or none
    assert program.typed(WORDS) == f"{installed} teacher=tiny 'objective=[fkl,sft]'"


@pytest.mark.usefixtures("installed")
def test_the_file_in_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *WORDS])
    monkeypatch.setattr(sys, "orig_argv", ["python", "run.py", *WORDS, "run.force=true"])
    assert program.typed(WORDS) == "python run.py teacher=tiny 'objective=[fkl,sft]'"
    assert program.again(without="run.force=") == program.typed(WORDS)
    assert program.started_by() == [str(Path.cwd() / "run.py")]


@pytest.mark.usefixtures("installed")
def test_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("kd.doctor.__main__", None))
    assert program.typed(WORDS) == "python -m kd.doctor teacher=tiny 'objective=[fkl,sft]'"
    assert program.started_by() == ["-m", "kd.doctor.__main__"]
