"""A leaf of a survey's taxonomy, as the page of coverage states it."""

from typing import NamedTuple


class Leaf(NamedTuple):
    """A leaf, or a method that a survey names in one.

    words: the overrides of `python run.py`; empty: it cannot be run.
    test: the test that runs it, `path::name`.
    missing: the part of it that is not there, in a phrase; empty: none is known.
    """

    name: str
    words: str = ""
    test: str = ""
    missing: str = ""
