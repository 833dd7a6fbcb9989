"""The docstrings of objectives: each hyperparameter is explained, and each module has an example that runs.

Run: python -m pytest tests/objectives/test_docstrings.py
"""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

import kd.objectives
from kd.components.signatures import located
from kd.composition.formula import prose
from kd.pages.objectives import arguments
from tests.objectives.terms import OBJECTIVES

MODULES = sorted(name for _, name, _ in pkgutil.iter_modules(kd.objectives.__path__))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in `node`: the objective's, and those of the functions that are its hyperparameters."""
    if isinstance(node, dict):
        yield from (node["_target_"],) if "_target_" in node else ()
        for child in node.values():
            yield from targets(child)


FILES = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in sorted(OBJECTIVES.glob("*.yaml"))]
CALLEES = sorted({target for file in FILES for target in targets(file)})


@pytest.mark.parametrize("target", CALLEES)
def test_args_explain_every_hyperparameter_and_no_other(target: str) -> None:
    callee = located("loss", target)
    hyperparameters = {
        name
        for name, parameter in inspect.signature(callee).parameters.items()
        if inspect.isclass(callee) or parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    explained = arguments(prose(callee))
    assert explained.keys() == hyperparameters
    assert all(len(words.split()) >= 5 for words in explained.values()), explained


@pytest.mark.parametrize("name", MODULES)
def test_the_example_of_a_module_has_the_values_that_its_text_derives(name: str) -> None:
    module = importlib.import_module(f"kd.objectives.{name}")
    assert ">>> " in (module.__doc__ or ""), "no example in the module's docstring"
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
