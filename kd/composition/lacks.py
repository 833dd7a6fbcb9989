"""A refusal with its ways out: the files by group that may provide what is missing."""

from collections.abc import Mapping, Sequence


class Lack(ValueError):
    """An error of what is required and not provided. `ways`: by group, the files each of which might provide it."""

    def __init__(self, fact: str, ways: Mapping[str, Sequence[str]]):
        super().__init__(fact)
        self.ways = ways
