"""RLCD: a preferred and a rejected response from two prompts for opposites."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import NonNegativeFloat

from kd.augmentation import Expected, Resources
from kd.augmentation.ratings import asked, checked_template
from kd.augmentation.self_knowledge import SelfGenerating
from kd.types import Record, Response


@dataclass(kw_only=True, eq=False)
class RLCD(SelfGenerating):
    """Pairs of the student's responses to a positive and to a negative version of each prompt, the first preferred.

    Reinforcement learning from contrastive distillation (arXiv 2307.12950, section 3): which response is better follows
    from the prompt that it was generated with, so no model judges them. The paper trains a reward model on the pairs,
    and then by PPO; objectives on pairs (dpo) learn from them directly. The record's prompt stays as it is.

    Args:
        positive_template, negative_template: the two prompts, with the field {question}: the last message.
        max_new_tokens, temperature, top_p, batch_size, generator: see `kd.augmentation.self_knowledge.SelfGenerating`.

    A pair of the same text twice is dropped.

    Raises:
        ValueError: a template lacks its field.
    """

    positive_template: str = "rlcd_positive"
    negative_template: str = "rlcd_negative"
    temperature: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {"positive": self.positive_template, "negative": self.negative_template}
        self.templates = {sign: checked_template(f"{sign}_template", one, "question") for sign, one in given.items()}

    @staticmethod
    def outline(record: Record, settings: Mapping[str, Any]) -> Record:
        """See `kd.augmentation.Stage`."""
        return replace(record, responses=(Response("", "student"),) * 2)

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        return Expected(records, 2 * records, 2 * records, 2 * records * settings["max_new_tokens"])

    def __call__(self, records: Iterable[Record], resources: Resources) -> Iterator[Record]:
        """The records with a pair of responses each, the preferred one first."""
        records = list(records)
        better, worse = (
            self.responses(resources, [asked(record, template) for record in records], f"{sign} responses")
            for sign, template in self.templates.items()
        )
        for record, pair in zip(records, zip(better, worse, strict=True), strict=True):
            if not all(pair):
                resources.dropped("no response")
                continue
            (preferred,), (rejected,) = pair
            if preferred.text == rejected.text:
                resources.dropped("equal responses")
            else:
                yield replace(record, responses=(preferred, rejected), provenance=(*record.provenance, "rlcd"))
