"""Self-rewarding: the student judges its own responses, and learns to prefer its best to its worst."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import NonNegativeFloat

from kd.augmentation import Expected, Resources
from kd.augmentation.ratings import checked_template, rate
from kd.augmentation.self_knowledge import SelfGenerating
from kd.generators.settings import Decoding, NewTokens, Nucleus, Samples
from kd.types import Record, Response

LOWEST, HIGHEST = 0, 5  # points


@dataclass(kw_only=True, eq=False)
class SelfRewarding(SelfGenerating):
    """Pairs of the student's best and worst response to each prompt, as the student itself rates them.

    Self-rewarding language models (arXiv 2401.10020, section 2.2): N = 4 candidates at temperature 0.7 and top-p 0.9,
    each rated by the model as a judge with an additive prompt of five points, the mean of several replies. The highest
    and the lowest become a pair for DPO; where all have the same points there is none. Of equal ones the first is
    taken. In a loop the student is trained on from round to round (`loop.student=continue`).

    Args:
        template: the prompt of the judge, with the fields {question} and {response}; a reply ends with "Score: 0" to
            "Score: 5".
        judgements: replies of the judge to each response, of which its points are the mean.
        judge_tokens: the most tokens of a reply.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: of the candidates; see
            `kd.augmentation.self_knowledge.SelfGenerating`. Temperature and top-p are the judge's, too.

    Raises:
        ValueError: `samples` is below 2; the template lacks a field; nothing sensible can be decoded.
    """

    template: str = "self_rewarding"
    judgements: Samples = 3
    judge_tokens: NewTokens = 256
    samples: Samples = 4
    temperature: NonNegativeFloat = 0.7
    top_p: Nucleus = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"samples={self.samples} makes no pair; set it to 2 or more")
        self.template = checked_template("template", self.template, "question", "response")
        self.judging = Decoding(self.judge_tokens, self.judgements, self.temperature, self.top_p, self.batch_size)
        self.engine.check(self.judging)

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "student", 1.0), Response("", "student", 0.0)))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        candidates = records * settings["samples"]
        replies = candidates * settings["judgements"]
        tokens = candidates * settings["max_new_tokens"] + replies * settings["judge_tokens"]
        return Expected(records, records + candidates, candidates + replies, tokens)

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with a pair of responses each, the better first, with their points."""
        records = list(records)
        found = self.responses(resources, records, "candidates")
        pairs = [
            (record, {"response": one.text}) for record, several in zip(records, found, strict=True) for one in several
        ]
        points = iter(
            rate(
                resources,
                "student",
                pairs,
                self.template,
                self.judging,
                what="points",
                bounds=(LOWEST, HIGHEST),
                engine=self.engine,
            )
        )
        for record, several in zip(records, found, strict=True):
            rated = [replace(one, score=score) for one in several if (score := next(points)) is not None]
            best, worst = max(rated, key=_points, default=None), min(rated, key=_points, default=None)
            if best is None or worst is None or best.score == worst.score:
                resources.dropped("no rating" if best is None else "equal ratings")
            else:
                yield replace(record, responses=(best, worst), provenance=(*record.provenance, "self_rewarding"))


def _points(response: Response) -> float:
    assert response.score is not None
    return response.score
