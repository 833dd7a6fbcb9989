"""Language: records in other languages than the wanted ones are dropped."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from kd.augmentation import Resources
from kd.augmentation.filters import ResponseFilter, Scope, instruction
from kd.types import Record

READ = 1000  # characters of a text by which its language is recognised


class Language(ResponseFilter):
    """Keeps the texts that are recognised as being in one of the wanted languages, as CCNet does (arXiv 1911.00359).

    CCNet recognises languages by fastText; here py3langid does, on the first 1,000 characters. A text with few letters
    (a number, a formula, a word) stays, for it has no language that could be recognised.

    Args:
        languages: codes of ISO 639-1, as `en`.
        prompts: whether the last message is judged, too, and the record dropped with it.
        letters: texts with fewer stay.
        each: as in `ResponseFilter`.

    Raises:
        ValueError: a language is none that can be recognised.
    """

    name: ClassVar[str] = "language"

    def __init__(
        self,
        *,
        languages: Sequence[str] = ("en",),
        prompts: bool = True,
        letters: int = 20,
        each: Scope = "record",
    ):
        super().__init__(each=each)
        self.languages, self.prompts, self.letters = frozenset(languages), prompts, letters
        if unknown := sorted(self.languages - _known()) or ([] if self.languages else ["none"]):
            known = ", ".join(sorted(_known()))
            raise ValueError(f"languages: {unknown[0]} is none that can be recognised; those are {known}")

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        for record in records:
            if self.prompts and self._is_other(instruction(record)):
                yield record, "other language of the prompt"
            else:
                yield from super().judged([record], resources)

    def fault(self, record: Record, text: str, resources: Resources) -> str | None:
        """See `ResponseFilter`."""
        return "other language of the response" if self._is_other(text) else None

    def _is_other(self, text: str) -> bool:
        from py3langid import classify

        begin = text[:READ]
        return sum(map(str.isalpha, begin)) >= self.letters and classify(begin)[0] not in self.languages


def _known() -> frozenset[str]:
    from py3langid import rank

    return frozenset(name for name, _ in rank("a"))
