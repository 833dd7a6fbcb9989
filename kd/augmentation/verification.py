"""Verification: of responses that were generated, those that the skill scores well stay."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from kd.augmentation import Resources, Stage
from kd.metrics.table import Metric, of_skill
from kd.skills.scoring import scored_all
from kd.types import Record, Response, Skill

VERSION = 2  # responses are compared with the skill's references, where they were with one another


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

    Raises:
        ValueError: `most` is not positive.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"skill"})

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
        skill = resources.skill
        assert skill is not None  # `requires`
        metric = of_skill(skill.metric)
        if self.threshold is None and not math.isfinite(metric.best):
            raise ValueError(
                f"threshold=null keeps what has the best value of {metric.name}, which has none; give the threshold"
            )
        own = {record.id: record for record in skill.load("train")}  # a score may read the responses of these
        for record in records:
            problem = own.get(record.id, record)
            given = own[record.id].responses if record.id in own else ()
            kept = self._right(record.responses, problem, skill, given[0].text if given else None)
            if not kept and self.otherwise == "reference":
                kept = given
            if not kept:
                resources.dropped("no right response")
            for i, answer in enumerate(kept):
                name = record.id if i == 0 else f"{record.id}/{i + 1}"
                yield replace(record, id=name, responses=(answer,), provenance=(*record.provenance, "verified"))

    def _right(
        self, responses: Sequence[Response], problem: Record, skill: Skill, reference: str | None
    ) -> tuple[Response, ...]:
        pairs = [(problem, answer.text) for answer in responses]
        scores = scored_all(skill, pairs, reference=lambda _: reference)
        found = [replace(answer, score=one.score) for answer, one in zip(responses, scores, strict=True)]
        right = [answer for answer in found if self._reaches(answer.score, of_skill(skill.metric))]
        if self.distinct:
            right = list({answer.text: answer for answer in right}.values())
        return tuple(right[: self.most])

    def _reaches(self, score: float | None, metric: Metric) -> bool:
        assert score is not None
        least = metric.best if self.threshold is None else self.threshold
        return score >= least if metric.higher_is_better else score <= least
