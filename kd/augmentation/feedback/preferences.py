"""Preferences between responses, which the teacher compares in pairs, in both orders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.feedback.grading import Keep, outline, preferred
from kd.augmentation.generation import Generating
from kd.judges.judge import Pair, Pairwise
from kd.judges.verdicts import Reply
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class PairwisePreferences(Generating):
    """The response that the teacher prefers before the other one: preferences of RLAIF.

    Lee et al. (arXiv 2309.00267, "Preference Labeling with LLMs"): a model reasons and then prefers one of two
    responses; each pair is read in both orders, since models prefer a place ("Addressing Position Bias"), and the two
    verdicts are averaged. Here a verdict is 1, 0.5 for a tie, or 0, and verdicts that differ between the orders are a
    tie; the paper averages the probabilities of the two labels, which a teacher of text does not give. Of more than two
    responses each is compared with each other one; the score is the share of comparisons that it wins.

    Args:
        template: the prompt with {question}, {answer_a} and {answer_b}; the reply ends with [[A]], [[B]] or [[tie]].
        names: the verdicts for the answer that is shown first, for the other one, and for a tie, if that is offered.
        swap: whether each pair is read in both orders; else every other pair is turned round.
        keep: best_and_worst: pairs of preference | best_and_other: the best and a random other one | all: every
            response, the best first, for `reward=scores`.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    Dropped are records with fewer than two responses, with a reply that holds no verdict, and, of pairs, ties.

    Raises:
        ValueError: the template lacks a field, or `names` are not two or three different ones.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    template: str
    names: Sequence[str] = ("A", "B", "tie")
    swap: bool = True
    keep: Keep = "best_and_worst"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.judge = Pairwise(template=self.template, names=self.names, swap=self.swap)

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with their responses in the order of preference."""
        records = list(records)
        places = [[*combinations(range(len(record.responses)), 2)] for record in records]
        pairs = [
            Pair(record, record.responses[i].text, record.responses[j].text)
            for record, own in zip(records, places, strict=True)
            for i, j in own
        ]
        found = resources.generate(
            "teacher", self.judge.prompts(pairs), self.decoding, what="preferences", engine=self.engine
        )
        replies = [Reply(answer.texts[0], answer.finished[0]) for answer in found]
        verdicts = iter(self.judge.verdicts(replies, len(pairs)))
        for record, own in zip(records, places, strict=True):
            outcomes = [next(verdicts)[0] for _ in own]
            if not own or any(one.outcome is None for one in outcomes):
                resources.dropped("no verdict" if own else "fewer than two responses")
                continue
            wins = [0.0] * len(record.responses)
            for (i, j), one in zip(own, outcomes, strict=True):
                wins[i] += one.value
                wins[j] += 1.0 - one.value
            scores = [won / (len(wins) - 1) for won in wins]
            if (made := preferred(record, scores, self.keep, resources, "pairwise_preferences")) is not None:
                yield made

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return outline(record, settings)

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of two responses to each prompt."""
        read = records * (2 if settings["swap"] else 1)
        return Expected(records, read, read, read * settings["max_new_tokens"])
