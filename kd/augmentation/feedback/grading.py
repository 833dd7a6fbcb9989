"""Grades by the teacher as a judge (`kd.judges`); its replies are kept on disk as all answers to stages are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from kd.augmentation import Resources
from kd.augmentation.generation import Generating
from kd.data.prompt_templates import template_text
from kd.judges.judge import Graded
from kd.judges.verdicts import Reply
from kd.types import Record, Response

Keep = Literal["all", "best_and_worst", "best_and_other"]


@dataclass(kw_only=True, eq=False)
class Grading(Generating):
    """A stage in which the teacher grades.

    Args:
        template: the prompt of a grade, whose reply ends with it in double brackets; {low} and {high} are filled in.
        low, high: the ends of the scale, whole numbers; `high` is best.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    Raises:
        ValueError: the template lacks a field, or the scale has no two grades.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    template: str
    low: NonNegativeInt = 1
    high: PositiveInt = 5

    def judge(self, kind: type[Graded] = Graded, **texts: str) -> Graded:
        """The judge of the stage's prompt, in which {low}, {high} and the fields of `texts` are filled in."""
        template = template_text("template", self.template)
        for name, text in {"low": str(self.low), "high": str(self.high), **texts}.items():
            if f"{{{name}}}" not in template:
                raise ValueError(f"template has no {{{name}}}, so the model would not read it; add it")
            template = template.replace(f"{{{name}}}", text.replace("{", "{{").replace("}", "}}"))
        return kind(template=template, low=self.low, high=self.high)

    def grades(self, resources: Resources, judge: Graded, prompts: Sequence[Record], what: str) -> list[int | None]:
        """The grade in the reply to each prompt; None where it holds none."""
        found = resources.generate("teacher", prompts, self.decoding, what=what, engine=self.engine)
        labels = (judge.read(Reply(answer.texts[0], answer.finished[0])) for answer in found)
        return [None if label is None else int(label) for label in labels]


def preferred(record: Record, scores: Sequence[float], keep: Keep, resources: Resources, stage: str) -> Record | None:
    """The record with the scores of its responses, the best first; None, counted as dropped, without a preference.

    keep: all of them | the best and the worst | the best and another one, drawn by the seed and the record's id. Equal
        scores stay in order; of a pair they are no preference.
    """
    judged = [replace(one, score=score) for one, score in zip(record.responses, scores, strict=True)]
    best, *others = sorted(judged, key=lambda one: -(one.score or 0.0))
    passed = (*record.provenance, stage)
    if keep == "all":
        return replace(record, responses=(best, *others), provenance=passed)
    if not others:
        resources.dropped("one response")
        return None
    other = others[-1] if keep == "best_and_worst" else Random(f"{resources.seed} {stage} {record.id}").choice(others)
    if other.score == best.score:
        resources.dropped("tie")
        return None
    return replace(record, responses=(best, other), provenance=passed)


def outline(record: Record, settings: Mapping[str, Any]) -> Record:
    """The outline (`kd.augmentation.Stage.outline`) of a stage that scores responses and keeps `keep`."""
    scored = tuple(replace(one, score=0.0) for one in record.responses)
    blank = Response("", score=0.0)
    return replace(record, responses=scored if settings["keep"] == "all" else (*scored, blank, blank)[:2])
