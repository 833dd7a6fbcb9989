"""Scores of rationales by their steps, each of which the teacher grades."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from kd.augmentation import Expected, Resources
from kd.augmentation.feedback.grading import Grading, Keep, outline, preferred
from kd.judges.judge import Graded
from kd.types import Record

COMBINED: Mapping[str, Callable[[Sequence[float]], float]] = {
    "product": math.prod,
    "min": min,
    "mean": lambda found: math.fsum(found) / len(found),
}


@dataclass(frozen=True, kw_only=True)
class StepGraded(Graded):
    """A judge that grades one step, `answer`, after the steps `before` it."""

    required: ClassVar[Sequence[str]] = ("question", "before", "answer")


@dataclass(kw_only=True, eq=False)
class StepScores(Grading):
    """Each response's score is the product, or the least, of the teacher's grades of its steps.

    Lightman et al. (arXiv 2305.20050, section 2.6): the score of a solution is the probability that every step is
    right, the product over its steps (or, appendix F.2, their minimum). WizardMath (2308.09583) has ChatGPT mark each
    step for its process reward. Grades are mapped to [0, 1], `low` to 0 and `high` to 1.

    Args:
        separator: regular expression between two steps.
        combine: product | min | mean of the steps' grades.
        most: a record with a response of more steps is dropped, for each step is a prompt.
        keep: all: every response, the best first, for `reward=scores` | best_and_worst | best_and_other: pairs.

    The other arguments are `kd.augmentation.feedback.grading.Grading`'s; the template has {question}, {before} (the
    steps before), {answer} (the step), {low} and {high}. A record of which a step has no grade is dropped.

    Raises:
        ValueError: `separator` is no regular expression, and as `Grading`.
    """

    name: ClassVar[str] = "step_scores"

    separator: str = r"\n+"
    combine: Literal["product", "min", "mean"] = "product"
    most: PositiveInt = 32
    keep: Keep = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grader = self.judge(StepGraded)
        try:
            self._separator = re.compile(self.separator)
        except re.error as error:
            raise ValueError(f"separator={self.separator!r} is no regular expression: {error}") from None

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the scores of their responses, the best first."""
        divided = [(record, [self._steps(one.text) for one in record.responses]) for record in records]
        graded = [(record, rows) for record, rows in divided if self._fits(rows, resources)]
        prompts = [
            self.grader.prompt(record, {"before": "\n".join(steps[:i]) or "(none)", "answer": steps[i]})
            for record, rows in graded
            for steps in rows
            for i in range(len(steps))
        ]
        grades = iter(self.grades(resources, self.grader, prompts, "grades of steps"))
        for record, rows in graded:
            found = [[next(grades) for _ in steps] for steps in rows]
            if any(grade is None for row in found for grade in row):
                resources.dropped("no grade")
                continue
            scores = [self._combined([grade for grade in row if grade is not None]) for row in found]
            if (made := preferred(record, scores, self.keep, resources, self.name)) is not None:
                yield made

    def _steps(self, text: str) -> list[str]:
        return [step.strip() for step in self._separator.split(text) if step and step.strip()]

    def _combined(self, grades: Sequence[int]) -> float:
        return COMBINED[self.combine]([(grade - self.low) / (self.high - self.low) for grade in grades])

    def _fits(self, rows: Sequence[Sequence[str]], resources: Resources) -> bool:
        reason = None
        if not rows:
            reason = "no response"
        elif any(not steps for steps in rows):
            reason = "response without a step"
        elif any(len(steps) > self.most for steps in rows):
            reason = "too many steps"
        if reason is not None:
            resources.dropped(reason)
        return reason is None

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return outline(record, settings)

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of one response of `most` steps to each prompt, the most there may be."""
        grades = records * settings["most"]
        return Expected(records, grades, grades, grades * settings["max_new_tokens"])
