"""A component whose numbers changed has another `VERSION`: else results of before would be shown as its own."""

import json

import pytest

from tests import pins

PINNED = json.loads(pins.FILE.read_text())


@pytest.fixture(scope="module")
def current():
    return pins.pins()


def test_every_component_is_pinned(current):
    assert current.keys() == PINNED.keys()


@pytest.mark.parametrize("name", PINNED)
def test_numbers_change_with_a_version(current, name):
    pinned, now = PINNED[name], current[name]
    assert now["code"] == pinned["code"], f"a VERSION that {name} depends on was raised: run python -m tests.pins"
    same = now["numbers"] == pytest.approx(pinned["numbers"], rel=1e-5, abs=1e-9)
    assert same, f"{name} computes other numbers: raise VERSION in {now['module']}, then run python -m tests.pins"
