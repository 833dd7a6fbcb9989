"""A refusal with its ways out: which files of which group may give what is missing."""

from collections.abc import Mapping, Sequence


class Lack(ValueError):
    """What is asked for and not given. `ways`: by group, the files each of which might give it."""

    def __init__(self, fact: str, ways: Mapping[str, Sequence[str]]):
        super().__init__(fact)
        self.ways = ways
