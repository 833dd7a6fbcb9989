"""Rows of targets from a server: of the tokens that it generated, or of given texts that it reads."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kd.alignment.token_bytes import TokenBytes, token_bytes
from kd.teachers.endpoint.client import Client, Replied, Request
from kd.teachers.endpoint.dialect import Dialect
from kd.teachers.endpoint.replies import Fault, Reply, Scored, Step, Wanted, parsed
from kd.teachers.endpoint.store import ReplyStore
from kd.teachers.listed import Row, placed

Messages = Sequence[Mapping[str, Any]]


class Generated:
    """The likeliest tokens beside those that the server generated, from the replies that are kept.

    Args:
        store: of the replies. dialect: of their requests. tokenizer: of the ids of the rows.
    """

    def __init__(self, store: ReplyStore, dialect: Dialect, tokenizer: PreTrainedTokenizerBase):
        self.words: TokenBytes = token_bytes(tokenizer)
        self.special = {tokenizer.decode([i]): i for i in self.words.special}
        self.tokens = self.found = 0
        self.steps: dict[tuple[str, str], tuple[Step, ...]] = {}
        for request, content in store.requests():
            body = json.loads(request)
            wanted = Wanted(dialect.form, body.get("n", 1), steps=bool(body.get("logprobs")))
            if wanted.steps:
                prompt = _named(body.get("messages", body.get("prompt")))
                answers, _ = parsed(content, wanted, empty=True)
                self.steps |= {(prompt, answer.text): answer.steps for answer in answers}

    def rows(self, prompt: Any, text: str, labels: Sequence[int]) -> list[Row] | None:
        """The rows of a response's labels; None where the server did not generate this text to this prompt."""
        steps = self.steps.get((_named(prompt), text))
        if steps is None:
            return None
        tokens = [_bytes(step) for step in steps]
        listed = [self._row(step) for step in steps]
        rows, count = placed(labels, tokens, listed, self.words)
        self.tokens, self.found = self.tokens + len(labels), self.found + count
        return rows

    def _row(self, step: Step) -> Row:
        """The candidates that the tokenizer has; the mass of others is left to the tail."""
        values: dict[int, float] = {}
        for one in [step, *step.top_logprobs]:
            if (i := self._id(one)) is not None:
                values.setdefault(i, one.logprob)
        return Row([*values], [*values.values()])

    def _id(self, token: Scored) -> int | None:
        found = self.words.ids.get(_bytes(token))
        return self.special.get(token.token) if found is None else found


def _bytes(token: Scored) -> bytes:
    return bytes(token.bytes) if token.bytes else token.token.encode()


def _named(prompt: Any) -> str:
    """The name of a conversation or of a text."""
    return json.dumps([dict(m) for m in prompt] if not isinstance(prompt, str) else prompt, sort_keys=True)


def read(
    client: Client, dialect: Dialect, sequences: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], name: str
) -> tuple[list[list[Row]], list[Replied]]:
    """The rows of the last tokens of sequences that a server with vLLM's `prompt_logprobs` reads, and its replies.

    Args:
        sequences: the ids of prompts and responses.
        labels: the ids of the responses, with which the sequences end.
        name: of what is read, for messages.

    Raises ValueError where the server gives no log-probability of a token.
    """
    requests = []
    for ids in sequences:
        body = {"model": dialect.served_model, "prompt": list(ids), dialect.length: 1, "temperature": 0.0}
        body = dialect.completed({**body, "prompt_logprobs": dialect.top})
        requests.append(Request(name, body, Wanted("completions", reading=True)))
    found = client.replies(requests)
    return [_read(reply.content, own, client.url) for reply, own in zip(found, labels, strict=True)], found


def _read(content: str, labels: Sequence[int], url: str) -> list[Row]:
    reply = Reply.model_validate_json(content)
    entries = (reply.choices[0].prompt_logprobs if reply.choices else None) or reply.prompt_logprobs or []
    rows = []
    for label, entry in zip(labels, entries[-len(labels) :], strict=False):
        if not entry or str(label) not in entry:
            break
        rows.append(Row([int(i) for i in entry], [float(one["logprob"]) for one in entry.values()]))
    if len(rows) != len(labels):
        raise Fault(
            f"{url} gives log-probabilities of {len(rows)} of the {len(labels)} tokens of a response (or of other "
            "ids); take teacher.tokenizer from the served model, and a server with prompt_logprobs (vLLM)"
        )
    return rows
