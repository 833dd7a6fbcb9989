"""Imports point down, names say something, and reports are read without training code.

Run: python -m pytest tests/test_layers.py
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KD = ROOT / "kd"

# A room may import from its own line and from those above it. A new file or folder of kd/ is placed here by whoever
# makes it: low, if others shall stand on it.
LAYERS: tuple[set[str], ...] = (
    {"types", "signals", "schedules", "seeding", "artifacts", "versions", "errors", "secrets", "permission", "program"}
    | {"intervals", "locks", "progress", "ranks", "eval_mode", "orphans", "sandbox", "metrics", "ray_cluster"},
    {"sources", "runs", "components"},
    {"data", "kernels", "objectives", "alignment", "reports"},
    {"models", "skills", "corpora"},
    {"generators", "environments"},
    {"teachers", "workers"},
    {"rewards", "augmentation", "rollouts", "evaluation", "judges"},
    {"training"},
    {"composition", "sweeps"},
    {"experiment"},
    {"doctor", "cache", "elicit", "serve", "command", "pages"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
RUN_FOLDER = {"artifacts", "runs", "errors"}  # the contract between training and everything that reads
STATISTICS = {"intervals", "metrics"}
NAMELESS = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "shared"}


def rooms() -> set[str]:
    """Modules and packages directly in kd/."""
    return {path.stem for path in KD.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))} - {"__init__"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """kd/objectives/divergence.py -> kd.objectives.divergence"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports, at its top or inside a function; `from a import b` gives a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Rooms of kd that a file of kd imports, other than its own."""
    found = {name.split(".")[1] for name in imported(path) if name.startswith("kd.")}
    return (found & rooms()) - {room_of(path)}


def room_of(path: Path) -> str:
    return path.relative_to(KD).parts[0].removesuffix(".py")


def test_every_room_has_its_place():
    assert rooms() - LEVEL.keys() == set(), "place the new room in LAYERS"


@pytest.mark.parametrize(
    "path", [path for path in files("kd") if path.parent != KD or path.stem != "__init__"], ids=module_name
)
def test_imports_point_down(path):
    level = LEVEL[room_of(path)] if path.stem != "__main__" else len(LAYERS) - 1  # what a command starts
    above = {room for room in rooms_imported(path) if LEVEL[room] > level}
    assert not above, f"{path.relative_to(ROOT)} imports from above: {sorted(above)}"


def test_no_two_rooms_lean_on_each_other():
    graph: dict[str, set[str]] = {}
    for path in files("kd"):
        if path.stem != "__main__":  # a command, which stands above its room
            graph.setdefault(room_of(path), set()).update(rooms_imported(path))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("path", files("kd/reports"), ids=module_name)
def test_reports_read_run_folders_only(path):
    assert rooms_imported(path) <= RUN_FOLDER | STATISTICS


def test_the_composed_config_is_passed_to_few_rooms():
    """Below experiment and the commands, whatever is made of a config takes its own section, or plain arguments."""
    seen = set()
    for path in files("kd"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                taken = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                seen |= {module_name(path) for one in taken if one.arg == "cfg"}
    above = ("kd.experiment", "kd.composition", "kd.doctor", "kd.cache", "kd.elicit", "kd.serve", "kd.command")
    assert {name for name in seen if not name.startswith(above)} == {"kd.training.trainer", "kd.training.observers"}


def test_reading_reports_loads_no_training_code():
    names = [module_name(path) for path in files("kd/reports") if path.stem != "__main__"]
    if not names:
        pytest.skip("there are no reports yet")
    code = f"import sys, {', '.join(names)}; print(*({{'torch', 'lightning', 'transformers'}} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_the_package_does_not_import_what_starts_it():
    starters = {"run", "hydra_plugins", "tests"}
    for path in files("kd"):
        assert not {name.split(".")[0] for name in imported(path)} & starters, path


def test_files_are_named_after_what_they_hold():
    named = [path for path in files("kd", "hydra_plugins", "tests", "experiments") if path.stem in NAMELESS]
    folders = [
        path
        for folder in ("kd", "hydra_plugins", "tests")
        for path in (ROOT / folder).rglob("*/")
        if path.name in NAMELESS
    ]
    assert named + folders == []


def test_functions_files_and_rooms_stay_small():
    """Functions of 60 lines, files of 350, rooms of 18 files; objectives stay flat, for their names are relied on."""
    long = []
    for path in files("kd", "hydra_plugins"):
        source = path.read_text()
        long += [str(path.relative_to(ROOT))] * (len(source.splitlines()) > 350)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    rooms_of_files = {room: len(list((KD / room).glob("*.py"))) for room in rooms() - {"objectives"}}
    assert long + [room for room, count in rooms_of_files.items() if count > 19] == []


@pytest.mark.parametrize(
    ("where", "line", "expected"),
    [
        ("kd/training/module.py", "import kd.data as d", {"kd.data"}),
        ("kd/training/module.py", "from kd import data, types", {"kd.data", "kd.types"}),
        ("kd/training/module.py", "from kd.data.windows import Data", {"kd.data.windows.Data"}),
        ("kd/models/packing.py", "from ..data import windows", {"kd.data.windows"}),
        ("kd/models/packing.py", "from . import attention", {"kd.models.attention"}),
        ("kd/models/__init__.py", "from .attention import read", {"kd.models.attention.read"}),
        ("kd/training/module.py", "def f():\n    from kd.data.windows import Data", {"kd.data.windows.Data"}),
    ],
)
def test_every_way_to_import_is_seen(where, line, expected, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert set(imported(path)) == expected
