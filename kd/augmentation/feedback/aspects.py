"""Scores of responses: the mean of the teacher's grades of several aspects."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.feedback.grading import Grading, Keep, outline, preferred
from kd.types import Record


@dataclass(kw_only=True, eq=False)
class AspectScores(Grading):
    """Each response's score is the mean of the teacher's grades of several aspects: UltraFeedback.

    Cui et al. (arXiv 2310.01377, section 2): several models respond to each instruction, and GPT-4 grades each response
    for instruction following, truthfulness, honesty and helpfulness, from 1 to 5. The preferred response is that of the
    highest mean: the released `overall_score`, which was read wrongly for some, is not used. The paper grades
    four responses in one prompt; here each is graded apart, so that their order does not matter. Responses come from
    the skill or the stages before: `augmentation=[sampling,aspect_scores]`.

    Args:
        aspects: for each aspect, by name, what is graded; the field {aspect} of the template.
        keep: all: every response, the best first, for `reward=scores` | best_and_worst: pairs of preference |
            best_and_other: the best and a random other one, as Zephyr (2310.16944) has them.

    The other arguments are `kd.augmentation.feedback.grading.Grading`'s; the template has {question}, {answer},
    {aspect}, {low} and {high}. A record of which a response has no grade in an aspect is dropped: a mean of fewer
    aspects would be on another scale.

    Raises:
        ValueError: there is no aspect, and as `Grading`.
    """

    name: ClassVar[str] = "aspect_scores"

    aspects: Mapping[str, str]
    keep: Keep = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.aspects:
            raise ValueError("aspects={} leaves nothing to grade; name one aspect or more, each with what is graded")
        self.judges = [self.judge(aspect=text) for text in self.aspects.values()]

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the scores of their responses, the best first."""
        records = list(records)
        prompts = [
            judge.prompt(record, {"answer": response.text})
            for record in records
            for response in record.responses
            for judge in self.judges
        ]
        grades = iter(self.grades(resources, self.judges[0], prompts, "grades"))
        for record in records:
            rows = [[next(grades) for _ in self.judges] for _ in record.responses]
            if not rows:
                resources.dropped("no response")
                continue
            if any(grade is None for row in rows for grade in row):
                resources.dropped("no grade")
                continue
            scores = [math.fsum(grade for grade in row if grade is not None) / len(row) for row in rows]
            if (made := preferred(record, scores, self.keep, resources, self.name)) is not None:
                yield made

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return outline(record, settings)

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of one response to each prompt."""
        grades = records * len(settings["aspects"])
        return Expected(records, grades, grades, grades * settings["max_new_tokens"])
