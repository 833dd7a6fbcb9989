"""Context distillation: the student generates with a context, and learns without it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kd.augmentation import Expected, Resources
from kd.augmentation.ratings import asked, checked_template
from kd.augmentation.self_knowledge import SelfGenerating
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class ContextDistillation(SelfGenerating):
    """The student's responses to each prompt within a context (instructions, principles, demonstrations), without it.

    Snell et al. 2022 (arXiv 2209.15189) and Askell et al. 2021 (arXiv 2112.00861, section 2.2): what a model does in a
    context it learns to do without. Self-Align (arXiv 2305.03047) distils its principles, and a verbose prompt, so. The
    record's prompt stays as it is.

    Args:
        template: the prompt that the student reads, with the field {question}: the last message.
        samples, max_new_tokens, temperature, top_p, batch_size, generator: see
            `kd.augmentation.self_knowledge.SelfGenerating`.

    Raises:
        ValueError: the template lacks its field.
    """

    template: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.template = checked_template("template", self.template, "question")

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "student"),) * settings["samples"])

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        responses = records * settings["samples"]
        return Expected(records, records, responses, responses * settings["max_new_tokens"])

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with the student's responses."""
        records = list(records)
        found = self.responses(resources, [asked(record, self.template) for record in records], "responses in context")
        for record, responses in zip(records, found, strict=True):
            if responses:
                yield replace(record, responses=responses, provenance=(*record.provenance, "context_distillation"))
            else:
                resources.dropped("no response")
