"""Every command that docs/reports.md shows is run, on drawn run folders.

Run: python -m pytest tests/reports/test_page.py
"""

import shlex
from pathlib import Path

import pytest

from kd.reports.__main__ import main
from tests.documents import ROOT, commands
from tests.reports.folders import write_grid

COMMANDS = list(dict.fromkeys(commands(ROOT / "docs" / "reports.md")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page")
    write_grid(made / "outputs", seeds=(1, 2))
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_prints_tables(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "kd.reports"]
    with pytest.raises(SystemExit) as ended:
        main(words[3:])
    assert ended.value.code == 0
    assert "fkl" in capsys.readouterr().out


def test_the_page_names_every_table() -> None:
    from kd.reports.sweep import TABLES

    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    assert [name for name in TABLES if f"| `{name}` |" not in text] == []
