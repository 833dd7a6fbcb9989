"""Critique and revision: the teacher finds what a principle forbids in a response, and writes it again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from kd.augmentation import Expected, Resources
from kd.augmentation.generation import Generating, fenced, paragraphs
from kd.augmentation.ratings import checked_template
from kd.seeding import derive
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class Revision(Generating):
    """The first response as the teacher revises it by a principle: supervised constitutional AI.

    Bai et al. (arXiv 2212.08073, section 3.1): a model criticises its response by a principle that is drawn from the
    constitution, and revises it by this critique; both may be repeated, with another principle. The student learns the
    last revision. There one model does all three; here the responses are those before the stage, as the student's own
    (`augmentation=[self_labeling,revised]`), and the teacher criticises.

    Args:
        constitution_template: the principles, each a paragraph: a text, a file, or a name of
            `kd/augmentation/prompts`. For each record and round one is drawn, by the seed and the record's id.
        critique_template: the prompt of the critique, with {question}, {response} and {principle}.
        revision_template: that of the revision, with {critique} as well.
        rounds: critiques of each response, each of the revision before.
        keep: revision: it replaces the record's responses | pair: it stands before the response, as the preferred one.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.generation.Generating`.

    Dropped are records without a response, those of which a critique or revision is empty or was truncated, and, of
    pairs, those that the revision left as they were.

    Raises:
        ValueError: a template lacks a field, or there is no principle.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"teacher"})

    constitution_template: str
    critique_template: str
    revision_template: str
    rounds: PositiveInt = 1
    keep: Literal["revision", "pair"] = "revision"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.principles = paragraphs("constitution_template", self.constitution_template)
        fields = ("question", "response", "principle")
        self.critique = checked_template("critique_template", self.critique_template, *fields)
        self.revision = checked_template("revision_template", self.revision_template, *fields, "critique")

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the last revision."""
        now: list[tuple[Record, str]] = []
        for record in records:
            if record.responses:
                now.append((record, record.responses[0].text))
            else:
                resources.dropped("no response")
        for number in range(self.rounds):
            now = self._revised(now, number, resources)
        for record, text in now:
            given = record.responses[0]
            if self.keep == "pair" and text == given.text:
                resources.dropped("unchanged response")
                continue
            responses = (Response(text, "teacher"), *([given] if self.keep == "pair" else []))
            yield replace(record, responses=responses, provenance=(*record.provenance, "revised"))

    def _revised(
        self, now: Sequence[tuple[Record, str]], number: int, resources: Resources
    ) -> list[tuple[Record, str]]:
        """The responses after one more critique."""
        drawn = [Random(derive(resources.seed, "revised", r.id, number)).choice(self.principles) for r, _ in now]
        prompts = [
            fenced(record, self.critique, {"response": text}, {"principle": principle})
            for (record, text), principle in zip(now, drawn, strict=True)
        ]
        critiques = self.teacher_texts(resources, prompts, f"critiques {number}", "truncated critique")
        judged = [
            (record, principle, {"response": text, "critique": critique})
            for (record, text), principle, critique in zip(now, drawn, critiques, strict=True)
            if critique is not None
        ]
        prompts = [fenced(record, self.revision, texts, {"principle": one}) for record, one, texts in judged]
        found = self.teacher_texts(resources, prompts, f"revisions {number}", "truncated revision")
        return [(record, text) for (record, *_), text in zip(judged, found, strict=True) if text is not None]

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "teacher"),) * (2 if settings["keep"] == "pair" else 1))

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        texts = 2 * records * settings["rounds"]
        return Expected(records, texts, texts, texts * settings["max_new_tokens"])
