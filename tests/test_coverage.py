"""The page of the surveys' leaves: its commands are runs, its tests exist, and no leaf is left out.

Run: python -m pytest tests/test_coverage.py
"""

import ast
import shlex
from pathlib import Path

import pytest

from kd.components.choices import choices
from kd.doctor.subject import composed
from kd.pages.coverage import PAGE, command, page, parts
from kd.skills.grid import LEAVES

ROOT = Path(__file__).parents[1]
EVERY = [leaf for leaves in parts().values() for leaf in leaves]
RUN = {leaf.words: leaf for leaf in EVERY if leaf.words}
FAST = ("objective=fkl", "method=pkd", "objective=grpo rollout=on_policy rollout.samples=4 reward=verifier")


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page()


def test_a_leaf_runs_and_is_tested_or_something_is_missing() -> None:
    for leaf in EVERY:
        assert bool(leaf.words) == bool(leaf.test), leaf
        assert leaf.words or leaf.missing, leaf


@pytest.mark.parametrize("test", sorted({leaf.test for leaf in EVERY if leaf.test}))
def test_the_tests_exist(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=[] if words in FAST else pytest.mark.long) for words in RUN]
)
def test_the_commands_are_runs(words: str) -> None:
    start, *overrides = shlex.split(command(RUN[words]).removeprefix("python "))
    assert start == "run.py"
    with composed(overrides):
        pass


def test_every_skill_leaf_is_there() -> None:
    named = {leaf.name for leaf in parts()["A and B · skills and verticals"]}
    assert set(LEAVES.values()) <= named


def test_what_the_surveys_name_and_a_file_runs_is_not_called_missing() -> None:
    """A method of conf/method or a stage of conf/augmentation whose name a row without a command bears."""
    built = {name.lower() for group in ("method", "augmentation") for name in choices(group)}
    for leaf in EVERY:
        if not leaf.words:
            words = {word.strip("(),:").lower().replace("-", "_") for word in leaf.name.split()}
            assert not words & built, leaf
