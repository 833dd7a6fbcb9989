"""ReST: the student's own samples above a threshold that rises from round to round."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from kd.augmentation.verification import Verified


class RisingThreshold(Verified):
    """Keeps the responses whose score reaches the threshold of the round: the Improve step of ReST (arXiv 2308.08998).

    ReST samples from the student (Grow: `kd.augmentation.labeling.SelfLabeling` before this stage), and trains it on
    what reaches a threshold, again and again with a higher one (Improve, section 3). Here each round of a loop
    (`loop.student=continue`, docs/loops.md) has samples of its own and the next threshold; the paper takes several
    Improve steps for one Grow step.

    Args:
        thresholds: of the first round, of the second, and so on; later rounds have the last.
        round: the number of the round, from 1.
        most, distinct, otherwise: as in `Verified`.

    Raises:
        ValueError: there is no threshold, or they do not rise towards the better; `round` is below 1.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"skill"})
    name: ClassVar[str] = "rest"

    def __init__(
        self,
        *,
        thresholds: Sequence[float | int],
        round: int = 1,
        most: int | None = None,
        distinct: bool = True,
        otherwise: str = "drop",
    ):
        steps = [later - earlier for earlier, later in pairwise(thresholds)]
        if not thresholds or (any(step > 0 for step in steps) and any(step < 0 for step in steps)):
            raise ValueError(f"thresholds={list(thresholds)} do not rise from round to round; list them in order")
        if round < 1:
            raise ValueError(f"round={round}: the first round is 1")
        chosen = thresholds[min(round, len(thresholds)) - 1]
        super().__init__(threshold=chosen, most=most, distinct=distinct, otherwise=otherwise)
