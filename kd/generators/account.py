"""The cost of generating text, counted where it is generated, so that no rollout generates uncounted text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from kd.models.flops import decoding_flops
from kd.models.language_model import LanguageModel
from kd.types import Source, Written


class Row(NamedTuple):
    """A prompt that was read once, and after it each of some responses but for its last token; in tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens read."""
        return self.prompt + sum(self.responses) - len(self.responses)


def shared(prompts: Sequence[int], responses: Sequence[Sequence[int]]) -> list[list[Row]]:
    """The rows of prompts that are read once for all their responses."""
    return [[Row(n, tuple(group))] for n, group in zip(prompts, responses, strict=True)]


class Spent(NamedTuple):
    """The cost of a rollout on this rank.

    generated_tokens: by the student, alone or together with a teacher, end tokens included.
    decoding_flops: of the student, in generating and in whatever else it read for the rollout (`kd.models.flops`).
    teacher_tokens: read by a teacher to generate, alone or with the student, or to score: prompts and all responses,
        without the last token of those that were generated.
    seconds: of generating alone, without scoring.
    judge_flops: of a reward model, or a discriminator, that scored responses.
    requests: to a server behind which a teacher is.
    money: their price, in the unit of the teacher's `price`.
    """

    generated_tokens: int = 0
    decoding_flops: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    judge_flops: int = 0
    requests: int = 0
    money: float = 0.0

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))  # type: ignore[arg-type]

    def less(self, other: "Spent") -> "Spent":
        """What remains of it, of which `other` is a part."""
        return Spent(*(max(one - part, 0) for one, part in zip(self, other, strict=True)))  # type: ignore[arg-type]

    @classmethod
    def of(cls, cost: Mapping[str, float | int]) -> "Spent":
        """The cost in a manifest, `_asdict()` of one that was written there."""
        return cls(**{name: cost[name] for name in cls._fields if name in cost})  # type: ignore[arg-type]


class Meter:
    """The sum of the costs that are charged while it is open (`metered`)."""

    def __init__(self) -> None:
        self.spent = Spent()


_OPEN: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())


@contextmanager
def metered(meter: Meter | None = None) -> Iterator[Meter]:
    """A context that adds the cost of everything generated, or charged, inside to the meter and to those around it."""
    meter = Meter() if meter is None else meter
    token = _OPEN.set((*_OPEN.get(), meter))
    try:
        yield meter
    finally:
        _OPEN.reset(token)


def is_metered() -> bool:
    """True if a meter is open."""
    return bool(_OPEN.get())


def charge(spent: Spent) -> None:
    """Adds a cost to every open meter."""
    for meter in _OPEN.get():
        meter.spent = meter.spent.plus(spent)


def charge_generation(
    readers: Sequence[LanguageModel],
    read: Sequence[Sequence[Row]],
    responses: Sequence[Sequence[Written]],
    *,
    source: Source,
    seconds: float,
) -> None:
    """Adds the cost of `responses` to every open meter: a teacher's in tokens read, else in the first reader's FLOPs.

    read: by prompt, the rows that each of the readers has read.
    """
    if not is_metered():
        return
    rows = [row for group in read for row in group]
    tokens = sum(row.tokens for row in rows)
    charge(Spent(seconds=seconds))
    if source == "teacher":
        charge(Spent(teacher_tokens=len(readers) * tokens))
        return
    generated = sum(len(answer.ids) for group in responses for answer in group)
    flops = sum(decoding_flops(readers[0], [n], group, samples=len(group)) for n, group in rows)
    charge(Spent(generated, flops, (len(readers) - 1) * tokens))


def charge_reading(model: LanguageModel, prompts: Sequence[int], responses: Sequence[int]) -> None:
    """Adds the cost of one forward pass over responses, each after its prompt, to every open meter."""
    if is_metered():
        charge(Spent(decoding_flops=decoding_flops(model, prompts, responses)))
