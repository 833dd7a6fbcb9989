"""Several judges of the same pairs: the majority of their verdicts, and how far they agree with one another.

An item counts where more than half of the judges have a verdict on it: else one judge alone would decide those that the
others cannot read, and the panel would be another one from item to item.

Example:
    >>> majority(["first", "first", "second"]), majority(["first", "tie"]), majority(["second", "first", None])
    ('first', 'tie', 'tie')
    >>> majority(["first", None, None]), majority(["first", None])
    (None, None)
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from kd.intervals import mean
from kd.judges.judging import Compared, Found, Judging, Key, agreement, share
from kd.judges.verdicts import Outcome

VERSION = 2  # an item counts where more than half of the judges have a verdict on it
NAME = "panel"


def majority(outcomes: Sequence[Outcome | None]) -> Outcome | None:
    """The verdict of more than half of the judges that have one, a tie without such; None where no more than half of
    all judges have one."""
    found = [outcome for outcome in outcomes if outcome is not None]
    if 2 * len(found) <= len(outcomes):
        return None
    return next((outcome for outcome in found if 2 * found.count(outcome) > len(found)), "tie")


class Panel:
    """All judges of a run that compare, on the opponents that two or more of them have.

    An item that no more than half of these judges read is left out; one that they read, and on which no more than half
    have a verdict, has none. `statistics` of items.csv are the verdicts of all of them, null where there is none.

    Args:
        members: the judges, after they measured.
        interval: confidence and resamples, as in `kd.intervals`.
    """

    name = NAME

    def __init__(self, members: Sequence[Judging], **interval: Any):
        self.members, self.interval, self.found = members, interval, Found()
        self.voting: list[tuple[float, str]] = []  # of each item that is not left out, the judges with a verdict
        for key in dict.fromkeys(key for member in members for key in member.found.outcomes):
            self._vote(key)

    def facts(self) -> dict[str, Any]:
        """The panel's entry in results.json (`kd.runs.results.Judge`); after those of its members."""
        found = self.found
        labelled = {member.judge.labelled for member in self.members}
        labels, unread = self._labels() if len(labelled) == 1 else ({}, 0)
        counts, groups = [count for count, _ in self.voting], [group for _, group in self.voting]
        most = (0.0, float(len(self.members)))
        nothing = dict.fromkeys(("position_bias", "shown_first", "longer"))
        return {
            "model": ", ".join(member.name for member in self.members),
            "verdict": "majority",
            "version": 1,
            "metrics": list(found.metrics),
            "unparsable": share([*zip(found.missing, found.groups, strict=True)], **self.interval),
            **nothing,
            "between": share(self._alike(), **self.interval),
            "voting": mean(counts, groups, bounds=most, **self.interval)._asdict() if counts else None,
            "left_out": found.left_out,
            "labelled_left_out": unread,
            **agreement(labelled.pop() if len(labelled) == 1 else None, labels, **self.interval),
        }

    def _vote(self, key: Key) -> None:
        members = [member.found for member in self.members if key in member.found.outcomes]
        if len(members) < 2:
            return
        pairs = {one: pair for found in members for one, pair in found.outcomes[key].items()}
        read = {one for one in pairs if 2 * sum(one in found.outcomes[key] for found in members) > len(members)}
        every = set(pairs).union(*(found.unread.get(key, ()) for found in members))
        self.found.left_out += len(every - read)
        votes = {one: [_vote_of(found, key, one) for found in members] for one in pairs if one in read}
        self.voting += [
            (float(len(vote) - vote.count(None)), f"{key[0]} {pairs[one].group}") for one, vote in votes.items()
        ]
        verdicts = {one: pairs[one]._replace(outcome=majority(vote)) for one, vote in votes.items()}
        self.found.add_rates(self.name, key, verdicts, [*votes.values()], **self.interval)

    def _labels(self) -> tuple[dict[str, tuple[Outcome, Outcome | None]], int]:
        """The label and the verdict of each labelled record that more than half of the judges read; the number of the
        others."""
        every = [member.found.labels for member in self.members]
        labels = {one: label for found in every for one, (label, _) in found.items()}
        read = {one: label for one, label in labels.items() if 2 * sum(one in found for found in every) > len(every)}
        votes = {one: [found[one][1] if one in found else None for found in every] for one in read}
        verdicts = {one: (label, majority(votes[one])) for one, label in read.items()}
        return verdicts, len({record.id for member in self.members for record in member.labelled} - read.keys())

    def _alike(self) -> list[tuple[bool, str]]:
        """For each pair of judges and each item on which both have a verdict, whether it is the same."""
        return [
            (one[name].outcome == other[name].outcome, f"{key[0]} {one[name].group}")
            for key in self.found.outcomes
            for one, other in combinations([m.found.outcomes[key] for m in self.members if key in m.found.outcomes], 2)
            for name in one
            if name in other and one[name].outcome is not None and other[name].outcome is not None
        ]


def _vote_of(found: Found, key: Key, name: str) -> Outcome | None:
    pair: Compared | None = found.outcomes[key].get(name)
    return None if pair is None else pair.outcome


def panels(judgings: Sequence[Judging], **interval: Any) -> list[Panel]:
    """The panel of the judges that compare, if two of them have an opponent in common; else none."""
    members = [judging for judging in judgings if judging.judge.opponents]
    opponents = [opponent for member in members for opponent in member.judge.opponents]
    return [Panel(members, **interval)] if len(set(opponents)) < len(opponents) else []
