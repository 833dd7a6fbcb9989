"""Length: records with a prompt or a response that is too short or too long are dropped."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from kd.augmentation import Resources
from kd.augmentation.filters import ResponseFilter, Scope, instruction
from kd.data.sequences import answer_ids
from kd.metrics.words import rouge_tokens
from kd.types import Record

Bound = int | None
Bounds = tuple[Bound, Bound]
Unit = Literal["words", "characters"]


class Length(ResponseFilter):
    """Keeps what has a prompt and responses of a length between bounds, which stay themselves.

    Self-Instruct (arXiv 2212.10560, section 2.2) drops instructions "too long or too short": its code keeps those of 4
    to 150 words.

    Args:
        unit: of the bounds: words (runs of letters and digits; of Chinese and Japanese each character) | characters.
        shortest_prompt, longest_prompt: bounds on the last message; None: no bound.
        shortest_response, longest_response: bounds on each response; None: no bound.
        each: as in `ResponseFilter`.

    Raises:
        ValueError: the bounds leave no length.
    """

    name: ClassVar[str] = "length"

    def __init__(
        self,
        *,
        unit: Unit = "words",
        shortest_prompt: Bound = None,
        longest_prompt: Bound = None,
        shortest_response: Bound = None,
        longest_response: Bound = None,
        each: Scope = "record",
    ):
        super().__init__(each=each)
        self.unit = unit
        given = {"prompt": (shortest_prompt, longest_prompt), "response": (shortest_response, longest_response)}
        self.bounds = {what: _checked(what, *bounds) for what, bounds in given.items()}

    def judged(self, records: Iterable[Record], resources: Resources) -> Iterator[tuple[Record, str | None]]:
        """See `Filter`."""
        for record in records:
            if (fault := self._fault("prompt", record, instruction(record), resources)) is not None:
                yield record, fault
            else:
                yield from super().judged([record], resources)

    def fault(self, record: Record, text: str, resources: Resources) -> str | None:
        """See `ResponseFilter`."""
        return self._fault("response", record, text, resources)

    def _fault(self, what: str, record: Record, text: str, resources: Resources) -> str | None:
        shortest, longest = self.bounds[what]
        if shortest is longest is None:
            return None
        size = self.size(record, text, resources)
        if shortest is not None and size < shortest:
            return f"short {what}"
        return f"long {what}" if longest is not None and size > longest else None

    def size(self, record: Record, text: str, resources: Resources) -> int:
        """The length of a text of the record, in the unit."""
        return len(rouge_tokens(text)) if self.unit == "words" else len(text)


class TokenLength(Length):
    """The same in the student's tokens, those of the text alone, without template and end token.

    Args:
        shortest_prompt, longest_prompt, shortest_response, longest_response, each: as in `Length`.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student"})
    name: ClassVar[str] = "token_length"

    def __init__(
        self,
        *,
        shortest_prompt: Bound = None,
        longest_prompt: Bound = None,
        shortest_response: Bound = None,
        longest_response: Bound = None,
        each: Scope = "record",
    ):
        super().__init__(
            shortest_prompt=shortest_prompt,
            longest_prompt=longest_prompt,
            shortest_response=shortest_response,
            longest_response=longest_response,
            each=each,
        )

    def size(self, record: Record, text: str, resources: Resources) -> int:
        """See `Length`."""
        tokenizer = None if resources.student is None else resources.student.tokenizer
        assert tokenizer is not None  # `requires`
        return len(answer_ids(record, text, tokenizer, ended=False))


def _checked(what: str, shortest: Bound, longest: Bound) -> Bounds:
    if (shortest or 0) < 0 or (longest is not None and longest < (shortest or 0)):
        raise ValueError(
            f"shortest_{what}={shortest} and longest_{what}={longest} leave no length; set 0 <= shortest <= longest"
        )
    return shortest, longest
