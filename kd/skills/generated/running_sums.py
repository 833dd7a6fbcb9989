"""Sums of one-digit numbers with every step written out: reasoning small enough for models over bytes to learn."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any, Literal

from kd.metrics.final_number import final_number
from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.licences import check_commercial
from kd.skills.procedural import checked_counts, stream_seed, take_distinct
from kd.types import Record, Response, Skill, Split

Task = Literal["solve", "predict"]
NAMES: Mapping[Task, str] = {"solve": "running_sums", "predict": "running_sums_predict"}
LARGEST = 20  # of the running totals; the smallest is 0


def steps(expression: str) -> tuple[str, int]:
    """The running totals of a sum, a sentence for each term after the first, and the last of them.

    >>> steps("7 + 5 - 3")
    ('7 + 5 = 12. 12 - 3 = 9.', 9)
    """
    first, *rest = expression.split()
    total, sentences = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        sentences.append(f"{total} {sign} {term} = {after}.")
        total = after
    return " ".join(sentences), total


def split_of(expression: str) -> Split:
    """Where a sum belongs, whatever the seed: 80 % of all in train, 10 % in validation and in test."""
    place = Random(f"running sums {expression}").random()
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


class RunningSums(Skill):
    """Sums such as `7 + 5 - 3 + 8`; totals stay between 0 and 20, so that they are few, and the steps are what is hard.

    A sum belongs to one split for every seed, and a longer split begins with the shorter one.

    Args:
        train, validation, test: numbers of records.
        terms: numbers in a sum, at least 2.
        task: solve: the response has the steps, and ends with "The answer is …" | predict: the prompt begins with
            `predict:`, and the response is the total alone. They are a teacher's and a student's task of distilling
            step-by-step (Hsieh et al. 2023, arXiv 2305.02301); both are of the same problems.
        metrics: others of the same answers, names of files in `conf/metric`.
        seed: draws other sums.
        commercial_only: as for every skill; the sums are this project's own, so it is allowed.

    Raises:
        ValueError: a count is negative, there are fewer than two terms, or `task` is none of these.
    """

    metric: str | Metric = Metric("accuracy")
    licence = "Apache-2.0"
    commercial = True
    group_key = "problem"
    leaf = "thinking"

    def __init__(
        self,
        *,
        train: int,
        validation: int,
        test: int,
        terms: int = 5,
        task: Task = "solve",
        metrics: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
        commercial_only: bool = False,
    ) -> None:
        if task not in NAMES:
            raise ValueError(f"skill.task={task} is none of {', '.join(NAMES)}; take one of them")
        if terms < 2:
            raise ValueError(f"skill.terms={terms} is no sum; take 2 or more")
        self.name, self.task, self.terms = NAMES[task], task, terms
        check_commercial(self.name, self.licence, self.commercial, commercial_only=commercial_only)
        self.counts = checked_counts(self.name, train=train, validation=validation, test=test)
        self.metrics, self.seed = answer_metrics(metrics), seed
        self._splits: dict[Split, tuple[Record, ...]] = {}

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split, drawn at the first call. Raises ValueError where there are not as many."""
        if split not in self._splits:
            records = take_distinct(self._draws(split), self.counts[split])
            if len(records) < self.counts[split]:
                raise ValueError(
                    f"{self.name} has about {len(records)} distinct sums of {self.terms} terms for {split}, "
                    f"fewer than {split}={self.counts[split]}; lower skill.{split}, or raise skill.terms"
                )
            self._splits[split] = tuple(records)
        return self._splits[split]

    def score(self, record: Record, text: str) -> float:
        """1 if the text's final number is the total, else 0."""
        number = final_number(text)
        return float(number is not None and float(number) == float(record.meta["answer"]))

    def _draws(self, split: Split) -> Iterator[Record | None]:
        for draw in count():
            expression = self._expression(Random(stream_seed(self.seed, split) + draw))
            yield self._record(expression, f"{split}/{draw}") if split_of(expression) == split else None

    def _expression(self, rng: Random) -> str:
        """Each sign is drawn from those that keep the total within its bounds."""
        total = rng.randint(1, 9)
        parts = [str(total)]
        for _ in range(self.terms - 1):
            term = rng.randint(1, 9)
            sign = rng.choice([sign for sign in (1, -1) if 0 <= total + sign * term <= LARGEST])
            total += sign * term
            parts += ["+" if sign > 0 else "-", str(term)]
        return " ".join(parts)

    def _record(self, expression: str, draw: str) -> Record:
        worked, total = steps(expression)
        solved = self.task == "solve"
        return Record(
            id=f"{self.name}/{self.seed}/{draw}",
            skill=self.name,
            prompt=({"role": "user", "content": expression if solved else f"predict: {expression}"},),
            responses=(Response(f"{worked} The answer is {total}." if solved else str(total)),),
            meta={"answer": str(total)},
        )
