"""Requests to vLLM and its answers, field by field: a deviation from its protocol is refused in one sentence."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from kd.generators.settings import Decoding

EXACT = 1e-3  # nats: a distance below it needs no explanation, also that of a log-probability above 0
Logprob = Annotated[float, Field(le=EXACT)]


class Completion(NamedTuple):
    """One response as the engine returns it."""

    ids: tuple[int, ...]  # the end token included
    logprobs: tuple[float, ...]  # of each id, under the distribution it was drawn from; for greedy, at temperature 1


@dataclass(frozen=True)
class Order:
    """A request to the engine."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]  # one for each prompt
    decoding: Decoding
    ends: Sequence[int]  # the only ids that end a response


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


class Parallel(Answer):
    """Of vLLM's configuration, the workers' part."""

    worker_extension_cls: str


class Config(Answer):
    """vLLM's configuration."""

    parallel_config: Parallel


class Info(Answer):
    """The answer of /server_info."""

    vllm_config: Config


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


def results(parts: Sequence[Future[list[Completion]]]) -> list[list[Completion]]:
    """The responses to each prompt. Where one fails, those that have not been begun are cancelled."""
    try:
        return [part.result() for part in parts]
    finally:
        for part in parts:
            part.cancel()


def check_ids(found: Sequence[Sequence[Completion]], order: Order, vocabulary: int) -> None:
    """Raises ValueError for responses that a model with so many ids could not have generated to the order."""
    samples, longest = order.decoding.samples, order.decoding.max_new_tokens
    if (counts := {len(group) for group in found}) != {samples} or len(found) != len(order.prompts):
        raise ValueError(
            f"the engine gave {sorted(counts)} responses to a prompt where {samples} were requested; it does not "
            "implement the completions protocol of vLLM"
        )
    for one in (one for group in found for one in group):
        if not one.ids or len(one.ids) != len(one.logprobs):
            raise ValueError(
                f"the engine gave {len(one.ids)} ids with {len(one.logprobs)} log-probabilities; it does not implement "
                "the completions protocol of vLLM"
            )
        if len(one.ids) > longest:
            raise ValueError(
                f"the engine wrote {len(one.ids)} ids where {longest} were the most; take vLLM 0.17 or later"
            )
        if early := set(order.ends) & set(one.ids[:-1]):
            raise ValueError(f"the engine wrote on after the end token {min(early)}; take vLLM 0.17 or later")
        if not all(-math.inf < logprob <= EXACT for logprob in one.logprobs):
            raise ValueError(
                "the engine gives log-probabilities that are invalid (not finite, or above 0), so its responses cannot "
                "be learnt from; look at its precision and its log"
            )
        if not 0 <= min(one.ids) <= max(one.ids) < vocabulary:
            wrong = next(i for i in one.ids if not 0 <= i < vocabulary)
            raise ValueError(
                f"the engine wrote the id {wrong}, but the tokenizer has {vocabulary}: it holds another "
                "model, or one whose padded head was trained; start it from the student's checkpoint"
            )
        if one.ids[-1] not in order.ends and len(one.ids) < longest:
            raise ValueError(
                f"the engine ended a response after {len(one.ids)} of {longest} tokens with the id "
                f"{one.ids[-1]}, which ends nothing; start it with --generation-config vllm and room for "
                "data.max_length tokens"
            )
