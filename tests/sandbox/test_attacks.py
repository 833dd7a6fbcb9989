"""No attack succeeds in the sandbox, and every one does without it.

Run: python -m pytest tests/sandbox/test_attacks.py
"""

import functools

import pytest

from kd.sandbox.attacks import ATTACKS, inside, outside, targets


@pytest.fixture(scope="module")
def at():
    with targets() as at:
        yield at


@functools.cache
def succeeds(attack, at):
    return outside(attack, at)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_sandbox_contains_what_succeeds_without_it(attack, at, mechanism):
    assert succeeds(attack, at), "this shows nothing: it does not even succeed in an ordinary process"
    succeeded, how = inside(attack, at)
    assert not succeeded, how
