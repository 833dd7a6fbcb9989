"""Several judges of the same pairs: the majority of their verdicts, and how far they agree with one another.

Example:
    >>> majority(["first", "first", "second"]), majority(["first", "tie"]), majority(["second", "first", None])
    ('first', 'tie', 'tie')
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from kd.judges.judging import Found, Judging, Key, agreement, share
from kd.judges.verdicts import Outcome

NAME = "panel"


def majority(outcomes: Sequence[Outcome | None]) -> Outcome | None:
    """The verdict of more than half of the judges that have one, a tie without such; None where no judge has one."""
    found = [outcome for outcome in outcomes if outcome is not None]
    most = [outcome for outcome in found if 2 * found.count(outcome) > len(found)]
    return most[0] if most else "tie" if found else None


class Panel:
    """All judges of a run that compare, on the pairs that two or more of them read.

    Args:
        members: the judges, after they measured.
        interval: confidence and resamples, as in `kd.intervals`.
    """

    name = NAME

    def __init__(self, members: Sequence[Judging], **interval: Any):
        self.members, self.interval, self.found = members, interval, Found()
        for key in dict.fromkeys(key for member in members for key in member.found.outcomes):
            self._vote(key)

    def facts(self) -> dict[str, Any]:
        """The panel's entry in results.json (`kd.runs.results.Judge`); after those of its members."""
        found = self.found
        labelled = {member.judge.labelled for member in self.members}
        labels = [member.found.labels for member in self.members]
        shared = [one for one in labels[0] if all(one in other for other in labels)]
        votes = {one: (labels[0][one][0], majority([other[one][1] for other in labels])) for one in shared}
        nothing = dict.fromkeys(("position_bias", "shown_first", "longer"))
        return {
            "model": ", ".join(member.name for member in self.members),
            "verdict": "majority",
            "version": 1,
            "metrics": list(found.metrics),
            "unparsable": share([*zip(found.missing, found.groups, strict=True)], **self.interval),
            **nothing,
            "between": share(self._alike(), **self.interval),
            "left_out": 0,
            **agreement(labelled.pop() if len(labelled) == 1 else None, votes, **self.interval),
        }

    def _vote(self, key: Key) -> None:
        several = [member.found.outcomes[key] for member in self.members if key in member.found.outcomes]
        if len(several) > 1:
            read = {one: group for outcomes in several for one, (_, group) in outcomes.items()}
            votes = {one: [outcomes[one][0] for outcomes in several if one in outcomes] for one in read}
            found = {one: (majority(vote), read[one]) for one, vote in votes.items()}
            self.found.add_rates(self.name, key, found, [*votes.values()], **self.interval)

    def _alike(self) -> list[tuple[bool, str]]:
        """For each pair of judges and each item on which both have a verdict, whether it is the same."""
        return [
            (one[name][0] == other[name][0], f"{key[0]} {one[name][1]}")
            for key in self.found.outcomes
            for one, other in combinations([m.found.outcomes[key] for m in self.members if key in m.found.outcomes], 2)
            for name in one
            if name in other and one[name][0] is not None and other[name][0] is not None
        ]


def panels(judgings: Sequence[Judging], **interval: Any) -> list[Panel]:
    """The panel of the judges that compare, if two of them have an opponent in common; else none."""
    members = [judging for judging in judgings if judging.judge.opponents]
    opponents = [opponent for member in members for opponent in member.judge.opponents]
    return [Panel(members, **interval)] if len(set(opponents)) < len(opponents) else []
