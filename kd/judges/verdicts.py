"""A judge's replies as verdicts: strictly, so that a reply without one is none, and never a tie.

Example:
    >>> parsed("The first is right. [[A]]", ["A", "B", "tie"]), parsed("[[A]] or [[B]]", ["A", "B", "tie"])
    ('A', None)
    >>> Verdict(("first", "second")).outcome, Verdict(("first", "second")).flipped
    ('tie', True)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Outcome = Literal["first", "second", "tie"]
VALUE: dict[Outcome | None, float] = {"first": 1.0, "tie": 0.5, "second": 0.0, None: float("nan")}
TURNED: dict[Outcome | None, Outcome | None] = {"first": "second", "second": "first", "tie": "tie", None: None}


class Reply(NamedTuple):
    """The answer of a judge to one prompt: a text, or the log-likelihood of each label in nats; neither where the
    prompt leaves the judge no room.

    finished: whether the text ended before it was truncated.
    """

    text: str | None = None
    finished: bool = False
    logprobs: Sequence[float] | None = None

    @property
    def left_out(self) -> bool:
        """Whether the judge did not read the prompt, which is too long for it."""
        return self.text is None and self.logprobs is None


def markup(label: str) -> str:
    """The form of a label in a text."""
    return f"[[{label}]]"


def _marked(labels: Sequence[str]) -> str:
    return r"\[\[(" + "|".join(map(re.escape, labels)) + r")\]\]"


def parsed(text: str, labels: Sequence[str]) -> str | None:
    """The label with which a text ends, as `[[A]]`; None where it ends otherwise, or holds another one, too."""
    found = re.findall(_marked(labels), text)
    ends = re.search(_marked(labels) + r"\s*\Z", text)
    return found[0] if ends and len(set(found)) == 1 else None


def defused(text: str, labels: Sequence[str]) -> str:
    """The text with `[ [A] ]` for `[[A]]`: a judge that repeats it repeats no verdict."""
    return re.sub(_marked(labels), r"[ [\1] ]", text)


def likeliest(logprobs: Sequence[float], labels: Sequence[str]) -> str | None:
    """The label of the highest log-likelihood; None where two share it."""
    best = max(logprobs)
    found = [label for label, value in zip(labels, logprobs, strict=True) if value == best]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Verdict:
    """A judge's verdicts on one pair of answers, one for each order in which it read them.

    orders: the better answer, "first" or "second" of the pair, in the order of the pair, and then, where it was read
        in both, in the other one; "tie"; None where the reply held no verdict.
    turned: whether the second answer was shown first, for each.
    read: whether all prompts left the judge room, so that it read the pair.
    """

    orders: tuple[Outcome | None, ...]
    turned: tuple[bool, ...] = (False, True)
    read: bool = True

    @property
    def outcome(self) -> Outcome | None:
        """The verdict of all orders: a tie where they differ, None where one of them is none."""
        if None in self.orders:
            return None
        return self.orders[0] if len(set(self.orders)) == 1 else "tie"

    @property
    def value(self) -> float:
        """1 where the first answer wins, 0.5 for a tie, 0 where the second wins; NaN for no verdict."""
        return VALUE[self.outcome]

    @property
    def flipped(self) -> bool | None:
        """Whether another answer won in the other order; None where one order was read, or a verdict is missing."""
        if len(self.orders) < 2 or None in self.orders:
            return None
        return set(self.orders) == {"first", "second"}

    @property
    def shown_first(self) -> list[bool]:
        """For each decided verdict, whether it names the answer that was shown first."""
        pairs = zip(self.orders, self.turned, strict=True)
        return [(order == "second") == turned for order, turned in pairs if order in ("first", "second")]
