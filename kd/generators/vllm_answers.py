"""A vLLM server's answers, field by field: a deviation from its protocol is refused in one sentence."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from kd.generators.external_engine import Completion

_ROUNDING = 1e-3  # nats that a log-probability may be above 0
Logprob = Annotated[float, Field(le=_ROUNDING)]


class Answer(BaseModel):
    """Types are exact (no "1" for 1, no true), numbers are finite; fields that are not used may be anything."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


A = TypeVar("A", bound=Answer)


class Card(Answer):
    """A model that the server offers."""

    id: Annotated[str, Field(min_length=1)]
    max_model_len: PositiveInt | None = None  # tokens of prompt and response


class Cards(Answer):
    """The answer of /v1/models."""

    data: list[Card]


class Logprobs(Answer):
    """The log-probabilities of a response's ids."""

    token_logprobs: list[Logprob]


class Scored(Answer):
    """The score of one id of a prompt."""

    logprob: Logprob


class Choice(Answer):
    """One response."""

    index: NonNegativeInt
    token_ids: list[NonNegativeInt] | None = None
    logprobs: Logprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Scored] | None] | None = None


class Choices(Answer):
    """The answer of /v1/completions: the responses to one prompt, in any order."""

    choices: list[Choice]


class Results(Answer):
    """The answer of /collective_rpc: one result for each worker."""

    results: Annotated[list[Any], Field(min_length=1)]


def parsed(kind: type[A], content: bytes, place: str) -> A:
    """The answer of `place`. Raises ValueError naming the first field that is wrong."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"{place} does not answer as vLLM does: {field}: {first['msg'].lower()}, in {content[:80]!r}; take vLLM "
            "0.17 or later, and look at what else may answer at generator.url"
        ) from None


def completions(answer: Choices, prompt: Sequence[int], samples: int, url: str) -> list[Completion]:
    """The responses in order. Raises ValueError for a missing, repeated or empty one, or one of another prompt."""
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if (found := [choice.index for choice in choices]) != list(range(samples)):
        raise ValueError(
            f"{url} gives the responses {', '.join(map(str, found[:9])) or 'none'} to a prompt where {samples} were "
            "requested, each once; take vLLM 0.17 or later"
        )
    return [_completion(choice, prompt, url) for choice in choices]


def _completion(choice: Choice, prompt: Sequence[int], url: str) -> Completion:
    if not choice.token_ids or choice.logprobs is None:
        raise ValueError(
            f"{url} gives text without token ids and log-probabilities, and text encoded again may be other "
            "ids; take vLLM 0.17 or later"
        )
    if choice.prompt_token_ids is not None and choice.prompt_token_ids != list(prompt):
        raise ValueError(f"{url} read another prompt than it was sent; it has another tokenizer than the run")
    return Completion(tuple(choice.token_ids), tuple(choice.logprobs.token_logprobs))


def prompt_logprobs(answer: Choices, ids: Sequence[int], url: str) -> list[float]:
    """Log-probabilities of each id but the first, given those before. Raises ValueError where one is missing."""
    found = answer.choices[0].prompt_logprobs if answer.choices else None
    scores = [entry.get(str(i)) if entry else None for entry, i in zip(found or (), ids, strict=False)][1:]
    if len(found or ()) != len(ids) or any(one is None for one in scores):
        raise ValueError(
            f"{url} does not score each token of a prompt, by which its new weights are verified; take vLLM 0.17 "
            "or later"
        )
    return [one.logprob for one in scores if one is not None]
