"""Refusals: responses that decline to answer are dropped."""

from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.filters import ResponseFilter, Scope
from kd.metrics.answers import refusal
from kd.metrics.words import rouge_tokens
from kd.types import Record


class Refusals(ResponseFilter):
    """Drops short responses that begin with a phrase of refusal, as "I'm sorry, but" (`kd.metrics.answers.refusal`).

    WizardLM's elimination (arXiv 2304.12244) drops responses with "sorry" that are short, "less than 80
    words". A student that learns them declines what it could answer.

    Args:
        words: responses of so many words or more stay; None: none stays for its length.
        each: as in `ResponseFilter`.
    """

    name: ClassVar[str] = "refusals"

    def __init__(self, *, words: int | None = 80, each: Scope = "record"):
        super().__init__(each=each)
        self.words = words

    def fault(self, record: Record, text: str, resources: Resources) -> str | None:
        """See `ResponseFilter`."""
        short = self.words is None or len(rouge_tokens(text)) < self.words
        return "refusal" if short and refusal(text) else None
