"""STaR: the student's rationales that lead to the right answer, those with the answer as a hint among them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from kd.augmentation import Expected, Resources
from kd.augmentation.ratings import asked, checked_template
from kd.augmentation.self_knowledge import SelfGenerating
from kd.augmentation.verification import Verified, one_each
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class STaR(SelfGenerating):
    """Keeps the student's rationales that end in the right answer; where none does, those with the answer as a hint.

    Self-Taught Reasoner (arXiv 2203.14465, section 3.2 and algorithm 1): a problem that the student does not solve is
    answered again with the answer as a hint ("rationalisation"), and kept if the skill's scorer accepts that. The hint
    is not in the record: the prompt remains the problem's. In a loop each round trains the student from the start
    (`loop.student=restart`).

    Args:
        template: the prompt of the second try, with the fields {question}, the last message, and {answer}: `answer` in
            the record's `meta`, else its first response.
        rationalise: whether there is a second try.
        threshold: the least score of a right answer (the largest, where lower is better); None: the metric's best.
        most: right rationales that stay for each problem, each as a record; None: all.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: of both tries; see
            `kd.augmentation.self_knowledge.SelfGenerating`. The paper's decoding is greedy.

    Raises:
        ValueError: the template lacks a field; `most` is not positive.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student", "skill"})

    template: str = "star_hint"
    rationalise: bool = True
    threshold: float | int | None = None
    most: int | None = None
    temperature: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.template = checked_template("template", self.template, "question", "answer")
        self.verified = Verified(threshold=self.threshold, most=self.most)

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "student", 1.0),))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: as if no first try were right."""
        prompts = records * (2 if settings.get("rationalise", True) else 1)
        responses = prompts * settings.get("samples", 1)
        return Expected(records, prompts, responses, responses * settings["max_new_tokens"])

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """A record for each right rationale, with it alone and its score."""
        records = list(records)
        tried = self._right(records, records, resources, "rationales")
        failed = [i for i, right in enumerate(tried) if not right and _answer(records[i]) is not None]
        hinted = [asked(records[i], self.template, {"answer": _answer(records[i]) or ""}) for i in failed]
        given = [records[i] for i in failed]
        again = self._right(given, hinted, resources, "rationalisations") if self.rationalise and failed else []
        second = dict(zip(failed, again, strict=False))
        for i, (record, right) in enumerate(zip(records, tried, strict=True)):
            if right:
                yield from one_each(record, right, "star")
            elif second.get(i):
                yield from one_each(record, second[i], "star", "rationalised")
            else:
                resources.dropped("no right rationale")

    def _right(
        self, records: list[Record], prompts: list[Record], resources: Resources, what: str
    ) -> list[tuple[Response, ...]]:
        """The right ones among the responses to each prompt, scored as responses to the record."""
        return self.verified.right(records, self.responses(resources, prompts, what), resources)


def _answer(record: Record) -> str | None:
    """The right answer of a record, for its hint; None where it has none."""
    if "answer" in record.meta:
        return str(record.meta["answer"])
    return record.responses[0].text if record.responses else None
