"""The notebooks are stored as they were executed or without any output, hold nothing of the machine, and run.

Run: python -m pytest tests/test_notebooks.py
"""

import base64
import getpass
import io
import re
import shlex
import socket
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from kd.composition.overrides import check_overrides
from kd.reports.__main__ import parser
from tests.notebooks import NOTEBOOKS, ROOT, executed

LARGEST = 300_000  # bytes
PLACES = re.compile(r"/(?:root|home|Users|work|tmp|private|opt|usr|mnt|data)/|[A-Z]:\\")
NOISE = re.compile(r"Traceback|Error\b|Warning|\x1b|\r|it/s\]|\d%\|")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """The printed texts of the cells, and their results as text and HTML."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    printed = [output.text for output in outputs if output.output_type == "stream"]
    results = [output.data for output in outputs if "data" in output]
    return printed + [data[kind] for data in results for kind in ("text/plain", "text/html") if kind in data]


def figures(notebook: nbformat.NotebookNode) -> list[Any]:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    pngs = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(png))).convert("L") for png in pngs]


def check_outputs(notebook: nbformat.NotebookNode) -> None:
    """Every cell ran, in order; there is a figure on which something is drawn; nothing names the machine."""
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    everything = "\n".join(texts(notebook))
    drawn = figures(notebook)
    assert drawn
    assert all(min(figure.size) > 100 and len(set(figure.getdata())) > 10 for figure in drawn)
    assert PLACES.findall(everything) == []
    assert socket.gethostname() not in everything
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b(?!=)", everything.replace("run.root", ""))
    assert NOISE.findall(everything) == []


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_run", "own_data", "own_objective", "sweep_statistics"]


def test_a_notebook_is_stored_as_it_was_executed_or_without_any_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    if any(cell.execution_count or cell.outputs for cell in code(notebook)):
        check_outputs(notebook)


def test_a_notebook_has_no_logic_of_its_own(path: Path) -> None:
    """No function, class, loop or branch in its cells, but in files of an extension that it writes."""
    for cell in code(nbformat.read(path, as_version=4)):
        logic = re.search(r"^\s*(def|class|for|while|if|with|try)\b", cell.source, flags=re.MULTILINE)
        assert cell.source.startswith("%%") or not logic, cell.source


def test_the_commands_of_a_notebook_name_what_there_is(path: Path) -> None:
    cells = [cell.source for cell in code(nbformat.read(path, as_version=4)) if cell.source.startswith("%%bash")]
    lines = [line for cell in cells for line in cell.replace("\\\n", " ").splitlines()]
    assert lines
    for line in lines:
        words = [word for word in shlex.split(re.sub(r"\d?>(&\d| *\S+)", "", line)) if "PYTHONPATH" not in word]
        if words[0] == "kd" and "--config-dir" not in words:
            check_overrides(words[1:])
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2])
            if words[2] == "kd.reports":
                parser().parse_args(words[3:])


def test_the_names_that_a_notebook_imports_are_there(path: Path) -> None:
    for cell in code(nbformat.read(path, as_version=4)):
        for module, name in re.findall(r"^from (kd[\w.]*) import (\w+)$", cell.source, flags=re.MULTILINE):
            assert hasattr(import_module(module), name)


def test_what_a_notebook_links_to_is_there(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\(([^)#\s]+)", cell.source) if cell.cell_type == "markdown" else ():
            assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    check_outputs(executed(path, tmp_path))
