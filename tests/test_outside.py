"""Files and code of every axis may lie outside of the clone: in a folder of --config-dir, or one of hydra.searchpath.

Run: python -m pytest tests/test_outside.py
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from kd.components.choices import CONF, content
from kd.composition.overrides import started
from kd.doctor.subject import composed
from kd.permission import ALLOW

RUN = ["optim.steps=2", "compare=null", "skill.train=32", "skill.validation=8", "skill.test=8", "run.root=/tmp/kd"]
# Command lines that together choose a file of each axis, and what else their runs take.
FIRST = {
    **{"teacher": "tiny", "student": "tiny", "skill": "spell_backward", "augmentation": "labeling", "targets": "topk"},
    **{"alignment": "same", "objective": "rkl", "corpus": "docstrings", "trainer": "cpu"},
    **{"evaluation": "quick", "logger": "csv", "rollout": "offline", "generator": "transformers"},
}
BASE = {axis: FIRST[axis] for axis in ("teacher", "student", "skill", "trainer")}
LINES = (
    FIRST,
    {**BASE, "rollout": "on_policy", "rollout.samples": "4", "objective": "reinforce", "reward": "verifier"},
    {**BASE, "method": "gkd"},
    {**BASE, "experiment": "tiny_grid"},
    {**BASE, "judge": "graded"},
)
CLASS = """
class {name}({module}.{name}):
    '''Theirs.'''
"""
FUNCTION = """
@functools.wraps({module}.{name})
def {name}(*args, **kwargs):
    return {module}.{name}(*args, **kwargs)


{name}.__module__ = __name__
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `theirs` beside a clone: yamls, and code that these name. What it imports is forgotten afterwards."""
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOW, "theirs")
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def copied(files: Mapping[str, str], package: Path) -> set[str]:
    """Copy a file of each axis under the name `mine`; the code that it names is made anew in `theirs.code`."""
    code, names = ["import functools"], set[str]()
    for axis, file in files.items():
        text = (CONF / axis / f"{file}.yaml").read_text(encoding="utf-8")
        for module, name in set(re.findall(r"_target_: (kd\.[\w.]+)\.(\w+)", text)):
            is_class = isinstance(getattr(importlib.import_module(module), name), type)
            code.append(f"import {module}" + (CLASS if is_class else FUNCTION).format(module=module, name=name))
            names.add(name)
        (package / axis).mkdir()
        moved = re.sub(r"_target_: kd\.[\w.]+\.(\w+)", r"_target_: theirs.code.\1", text)
        (package / axis / "mine.yaml").write_text(moved)
    (package / "code.py").write_text("\n".join(code))
    return names


def test_every_axis_is_tested() -> None:
    axes = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "metric", "variant", "lm_eval"}
    assert axes <= {key for line in LINES for key in line}


@pytest.mark.parametrize("line", LINES, ids=lambda line: list(line)[-1])
def test_files_and_their_code_outside_of_the_clone_are_as_good_as_ours(line: dict[str, str], outside: Path) -> None:
    """The composed config is the project's own, but for the place of the code."""
    names = copied({axis: file for axis, file in line.items() if "." not in axis}, outside)
    found = []
    for more in (str(outside), None):
        chosen = {axis: file if "." in axis or more is None else "mine" for axis, file in line.items()}
        with composed([*(f"{axis}={file}" for axis, file in chosen.items()), *RUN], more=more) as cfg:
            found.append(OmegaConf.to_yaml(cfg))
    theirs, ours = found
    assert names <= set(re.findall(r"_target_: theirs\.code\.(\w+)", theirs))
    for name in names:
        ours = re.sub(rf"_target_: kd\.[\w.]+\.{name}\b", f"_target_: theirs.code.{name}", ours)
    assert theirs == ours


@pytest.mark.parametrize("place", ["{folder}", "file://{folder}", "pkg://theirs"])
def test_hydras_search_path_leads_to_the_files(place: str, outside: Path) -> None:
    copied({"objective": "rkl"}, outside)
    words = [f"{axis}={file}" for axis, file in BASE.items()]
    with composed([*words, *RUN, f"hydra.searchpath=[{place.format(folder=outside)}]", "objective=mine"]) as cfg:
        assert cfg.objective.rkl.loss._target_ == "theirs.code.reverse_kl"


@pytest.mark.parametrize("entries", ["[on_policy]", "[on_policy, _self_]", "[_self_, on_policy]"])
def test_a_file_that_stands_on_another_is_read_as_hydra_reads_it(entries: str, outside: Path) -> None:
    (outside / "rollout").mkdir()
    (outside / "rollout" / "mine.yaml").write_text(f"defaults: {entries}\nsamples: 3\n")
    with started(more=outside):
        composed_by_hydra = compose(overrides=["+rollout=mine"]).rollout
        assert content("rollout", "mine") == OmegaConf.to_container(composed_by_hydra, resolve=False)


@pytest.mark.parametrize("place", ["/no/such", "pkg://no_such.package", "pkg://nothing"])
def test_a_search_path_that_leads_nowhere_is_named(place: str) -> None:
    refusal = pytest.raises(ValueError, match=rf"^hydra\.searchpath=\[{place}\]: there is no such folder or package")
    with refusal, composed([f"hydra.searchpath=[{place}]"]):
        pass
