"""Rows that cannot be read: the first one is an error, or they are skipped and counted."""

from collections.abc import Callable, Sequence
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
BadRowsSetting = Literal["refuse", "skip"]
FIRST = 3  # bad rows that are named in outputs


class BadRows:
    """The bad rows of one skill.

    Args:
        setting: refuse: the first is an error | skip: they are left out and counted.

    Attributes:
        sentences: of each that was skipped, its file, its line and what is wrong with it.
    """

    def __init__(self, setting: str = "refuse"):
        if setting not in ("refuse", "skip"):
            raise ValueError(f"skill.bad_rows={setting} is neither refuse nor skip; take one of them")
        self.skip = setting == "skip"
        self.sentences: list[str] = []

    def attempt(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of `read` of a row; None where it raises ValueError and the row is skipped."""
        try:
            return read(*args, **kwargs)
        except ValueError as error:
            if not self.skip:
                raise
            self.sentences.append(str(error).partition("; ")[0])
            return None


def named(sentences: Sequence[str]) -> str:
    """The first sentences on bad rows, and the number of the others."""
    more = len(sentences) - FIRST
    return "; ".join([*sentences[:FIRST], *([f"and {more:,} more"] if more > 0 else [])])
