"""A server's replies, field by field: one that does not hold what was requested is faulty."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

Form = Literal["chat", "completions"]
CUT = (None, "length", "content_filter", "abort")  # reasons with which a response did not end by itself
_ROUNDING = 1e-3  # nats that a log-probability may be above 0
Logprob = Annotated[float, Field(le=_ROUNDING)]
_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


class Fault(ValueError):
    """A reply with status 200 whose content is not what was requested. `missing`: the ability that it lacks."""

    def __init__(self, fact: str, missing: str | None = None):
        super().__init__(fact)
        self.missing = missing


class Empty(Fault):
    """A reply with a response that has no text."""


class Part(BaseModel):
    """Numbers are finite; fields that are not used may be anything."""

    model_config = ConfigDict(allow_inf_nan=False)


class Usage(Part):
    """The tokens that the server counted."""

    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt = 0


class Scored(Part):
    """A token with its log-probability; bytes: where its text is no whole character."""

    token: str
    logprob: Logprob
    bytes: list[int] | None = None


class Step(Scored):
    """A generated token, and the likeliest ones at its place."""

    top_logprobs: list[Scored] = []


class Logprobs(Part):
    """The generated tokens of a response; in the layout of completions, four lists."""

    content: list[Step] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[Logprob] | None = None
    top_logprobs: list[dict[str, Logprob]] | None = None

    def steps(self) -> list[Step]:
        """The tokens in either layout."""
        if self.content is not None:
            return self.content
        tops = self.top_logprobs or [{}] * len(self.tokens or ())
        rows = zip(self.tokens or (), self.token_logprobs or (), tops, strict=True)
        return [
            Step(token=token, logprob=value, top_logprobs=[Scored(token=t, logprob=x) for t, x in top.items()])
            for token, value, top in rows
        ]


class Message(Part):
    """The message of a chat's choice."""

    content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(Part):
    """One response."""

    index: NonNegativeInt
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Reply(Part):
    """The reply to one request."""

    choices: list[Choice]
    usage: Usage | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None  # vLLM's chat has them here


class Answer(NamedTuple):
    """One response: its text, whether it ended by itself, and the steps of its tokens where these were requested."""

    text: str
    finished: bool
    steps: tuple[Step, ...] = ()


class Wanted(NamedTuple):
    """The content that a request is for.

    responses: their number. steps: whether log-probabilities are. schema: a JSON schema that each text follows.
    reading: whether log-probabilities of the prompt are, and the text counts for nothing.
    """

    form: Form
    responses: int = 1
    steps: bool = False
    schema: Mapping[str, Any] | None = None
    reading: bool = False


def parsed(content: str, wanted: Wanted, *, empty: bool = False) -> tuple[list[Answer], Usage | None]:
    """The answers of a reply, in order, and its usage.

    Args:
        content: the reply's body.
        wanted: what was requested.
        empty: whether a text may be empty; it is then an unfinished answer.

    Raises:
        Fault: the content is not what was requested; `Empty`, a text is empty.
    """
    try:
        reply = Reply.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise Fault(f"the reply is malformed ({field}: {first['msg'].lower()}, in {content[:60]!r})") from None
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    if (found := [choice.index for choice in choices]) != list(range(wanted.responses)):
        numbers = ", ".join(map(str, found[:9])) or "none"
        raise Fault(f"{wanted.responses} responses were requested, and it holds {len(found)} (number {numbers})", "n")
    if wanted.reading and not (reply.prompt_logprobs or choices[0].prompt_logprobs):
        raise Fault("it has no log-probabilities of the prompt, which were requested", "prompt_logprobs")
    return [_answer(choice, wanted, empty or wanted.reading) for choice in choices], reply.usage


def usage_of(content: str) -> Usage | None:
    """The usage of a reply, faulty or not, where it can be read."""
    try:
        return Reply.model_validate_json(content).usage
    except ValidationError:
        return None


def _answer(choice: Choice, wanted: Wanted, empty: bool) -> Answer:
    message = choice.message or Message()
    text = (choice.text if wanted.form == "completions" else message.content) or ""
    if not text and not message.tool_calls:
        if empty:
            return Answer("", False)
        raise Empty(f"response {choice.index} is empty (finish_reason {choice.finish_reason})")
    if wanted.schema is not None and (reason := misfit(text, wanted.schema)):
        raise Fault(f"response {choice.index} does not follow the schema: {reason}", "structured")
    found = choice.logprobs.steps() if wanted.steps and choice.logprobs is not None else []
    if wanted.steps and not found:
        raise Fault(f"response {choice.index} has no log-probabilities, which were requested", "logprobs")
    return Answer(text, choice.finish_reason not in CUT, tuple(found))


def misfit(text: str, schema: Mapping[str, Any]) -> str | None:
    """The first point in which a text is no JSON of the schema's top level (type, required keys and their types)."""
    try:
        value = json.loads(text)
    except ValueError:
        return f"no JSON: {text[:60]!r}"
    return _mistyped("the whole", value, schema) or next(_misfits(value, schema), None)


def _misfits(value: Any, schema: Mapping[str, Any]) -> Any:
    properties = schema.get("properties") or {}
    for name in schema.get("required") or () if isinstance(value, Mapping) else ():
        if name not in value:
            yield f"{name} is missing"
    for name, part in properties.items() if isinstance(value, Mapping) else ():
        if name in value and (found := _mistyped(name, value[name], part)):
            yield found


def _mistyped(name: str, value: Any, schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    wanted: Any = _TYPES.get(kind) if isinstance(kind, str) else None
    wrong = wanted is not None and (not isinstance(value, wanted) or (kind != "boolean" and isinstance(value, bool)))
    if wrong:
        return f"{name} is {type(value).__name__}, not {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{name} is {value!r}, which is none of {schema['enum']}"
    return None
