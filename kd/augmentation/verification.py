"""Verification: of responses that were generated, those that the skill scores well stay."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from kd.augmentation import Resources, Stage
from kd.augmentation.new_records import PARENTS
from kd.metrics.table import Metric, of_skill
from kd.skills.scoring import Scored, scored_all
from kd.types import Record, Response, Skill

VERSION = 3  # problems that a stage made are dropped, which the skill cannot score


def scores_of(pairs: Sequence[tuple[Record, str]], resources: Resources) -> list[Scored]:
    """The skill's score of each record's text.

    A score may read the responses with which the skill's record of this id came, or else the record's own.
    """
    own = _own(resources)
    assert resources.skill is not None  # `requires`
    problems = [(_problem(own, record) or record, text) for record, text in pairs]
    return scored_all(resources.skill, problems, reference=lambda problem: _reference(own, problem))


def best_of(skill: Skill) -> float:
    """The best value of the skill's metric. Raises ValueError where it has none."""
    metric = of_skill(skill.metric)
    if not math.isfinite(metric.best):
        raise ValueError(f"a right answer has the best value of {metric.name}, which has none; take another skill")
    return metric.best


class Verified(Stage):
    """Keeps the responses whose score reaches a threshold: rejection sampling, with the skill's scorer as the verifier.

    After `SelfLabeling` with several samples this is one iteration of ReST-EM (arXiv 2312.06585: indicator reward) or
    RFT (arXiv 2308.01825); with `otherwise: reference` a problem that the student cannot solve yet is learnt from its
    reference, where STaR (arXiv 2203.14465) generates a rationale with the answer as a hint.

    Args:
        threshold: the least score that stays (the largest, where lower is better); None: the metric's best value.
        most: responses that stay for each prompt, the first ones, each as a record; None: all. RFT and ReST-EM bound
            them, so that easy problems do not outweigh hard ones.
        distinct: whether a text that occurs twice for one prompt stays once.
        otherwise: what becomes of a record without such a response: "drop", or "reference", which the skill gave it.

    New problems that a stage made (`kd.augmentation.new_records`) are dropped: the skill has no answers to them.

    Raises:
        ValueError: `most` is not positive.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"skill"})
    name: ClassVar[str] = "verified"  # in a record's provenance

    def __init__(
        self,
        *,
        threshold: float | int | None = None,
        most: int | None = None,
        distinct: bool = True,
        otherwise: str = "drop",
    ):
        if most is not None and most < 1:
            raise ValueError(f"most={most} keeps no response; give 1 or more, or null for all")
        if otherwise not in ("drop", "reference"):
            raise ValueError(f"otherwise={otherwise!r} is neither 'drop' nor 'reference'")
        self.threshold, self.most, self.distinct, self.otherwise = threshold, most, distinct, otherwise

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """A record for each such response, with it alone and its score; a window may mix them whatever their number."""
        given, own = list(records), _own(resources)
        records = [record for record in given if _problem(own, record) or PARENTS not in record.meta]
        if len(records) < len(given):  # a response would be compared with itself, or a text with another's answer
            resources.dropped("problem that the skill cannot score", len(given) - len(records))
        right = self.right(records, [record.responses for record in records], resources)
        for record, kept in zip(records, right, strict=True):
            if not kept and self.otherwise == "reference" and (problem := _problem(own, record)):
                kept = problem.responses
            if not kept:
                resources.dropped("no right response")
            yield from one_each(record, kept, self.name)

    def right(
        self, records: Sequence[Record], responses: Sequence[Sequence[Response]], resources: Resources
    ) -> list[tuple[Response, ...]]:
        """Of the responses to each record those that stay, with their scores (`scores_of`).

        Raises ValueError where the threshold is the metric's best value, and it has none.
        """
        assert resources.skill is not None  # `requires`
        metric = of_skill(resources.skill.metric)
        if self.threshold is None and not math.isfinite(metric.best):
            raise ValueError(
                f"threshold=null keeps what has the best value of {metric.name}, which has none; give the threshold"
            )
        pairs = [(record, one.text) for record, several in zip(records, responses, strict=True) for one in several]
        scores = iter(scores_of(pairs, resources))
        scored = [[replace(one, score=next(scores).score) for one in several] for several in responses]
        return [self._kept(several, metric) for several in scored]

    def _kept(self, scored: Sequence[Response], metric: Metric) -> tuple[Response, ...]:
        right = [answer for answer in scored if self._reaches(answer.score, metric)]
        if self.distinct:
            right = list({answer.text: answer for answer in right}.values())
        return tuple(right[: self.most])

    def _reaches(self, score: float | None, metric: Metric) -> bool:
        assert score is not None
        least = metric.best if self.threshold is None else self.threshold
        return score >= least if metric.higher_is_better else score <= least


def one_each(record: Record, responses: Sequence[Response], *names: str) -> Iterator[Record]:
    """A record for each response, with it alone, passed by the stages `names`; from the second on with a number."""
    for i, response in enumerate(responses):
        name = record.id if i == 0 else f"{record.id}/{i + 1}"
        yield replace(record, id=name, responses=(response,), provenance=(*record.provenance, *names))


def _own(resources: Resources) -> dict[str, Record]:
    """The skill's training records, by id."""
    assert resources.skill is not None  # `requires`
    return {record.id: record for record in resources.skill.load("train")}


def _problem(own: Mapping[str, Record], record: Record) -> Record | None:
    """The skill's record of a problem, of which `one_each` may have made several; None where it is not the skill's."""
    first, _, number = record.id.rpartition("/")
    return own.get(record.id) or (own.get(first) if number.isdecimal() else None)


def _reference(own: Mapping[str, Record], problem: Record) -> str | None:
    """A right answer to a problem, with which a verifier that fails is tried; None where the skill has none."""
    responses = own[problem.id].responses if problem.id in own else ()
    return responses[0].text if responses else None
