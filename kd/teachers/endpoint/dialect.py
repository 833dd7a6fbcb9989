"""The bodies of requests to one server, and what its replies to them hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd.teachers.endpoint.replies import Form, Wanted


@dataclass(frozen=True)
class Dialect:
    """The form of requests to a server; the fields are arguments of `kd.teachers.endpoint.teacher.Endpoint`."""

    served_model: str
    form: Form = "chat"
    offers: frozenset[str] = frozenset({"text"})
    parameters: Mapping[str, Any] = field(default_factory=dict)
    length: str = "max_tokens"
    schema: Mapping[str, Any] | None = None
    top: int = 20

    @property
    def steps(self) -> bool:
        """Whether log-probabilities are requested with each response."""
        return "top_logprobs" in self.offers

    def wanted(self, responses: int) -> Wanted:
        """The content of the reply to a request for so many responses."""
        return Wanted(self.form, responses, self.steps, self.schema)

    def body(self, messages: Sequence[Mapping[str, Any]], longest: int, **settings: Any) -> dict[str, Any]:
        """The body of a request for responses to a conversation.

        Args:
            messages: with role and content.
            longest: tokens of a response.
            settings: further keys, such as temperature, top_p, n and seed.
        """
        body: dict[str, Any] = {"model": self.served_model, **self.prompt(messages), self.length: longest, **settings}
        if self.steps:
            body |= self.asking_logprobs()
        if self.schema is not None:
            body |= following(self.schema)
        return self.completed(body)

    def asking_logprobs(self) -> dict[str, Any]:
        """The keys that request the log-probabilities of generated tokens."""
        return {"logprobs": True, "top_logprobs": self.top} if self.form == "chat" else {"logprobs": self.top}

    def completed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with `parameters`, and without the keys that are null there."""
        return {name: value for name, value in {**body, **self.parameters}.items() if value is not None}

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The key of a body that holds a conversation."""
        if self.form == "chat":
            return {"messages": [dict(message) for message in messages]}
        return {"prompt": "\n\n".join(str(message["content"]) for message in messages) + "\n"}


def following(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The key that requests texts of a JSON schema."""
    named = {"name": "response", "schema": dict(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
