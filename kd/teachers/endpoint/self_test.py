"""The test of a server before the first paid request: whether it does what its yaml declares that it offers."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from kd.teachers.endpoint.client import Client, Request
from kd.teachers.endpoint.dialect import Dialect, following
from kd.teachers.endpoint.replies import Answer, Fault, Reply, Step, Wanted, parsed

log = logging.getLogger(__name__)

PROMPT = "Repeat these words and stop: red green blue"
CONTROL = re.compile(r"<\|[\w ]+\|>|</s>|<eos>|<end_of_turn>|\[/INST\]")
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
REMEDIES = {  # by what a reply lacks: the ability, and the remedy
    "n": ("several responses at once", "set teacher.together=false"),
    "logprobs": ("logprobs", "take logprobs and top_logprobs out of teacher.offers, or start another server"),
    "structured": ("structured", "take structured out of teacher.offers, or start another server"),
    "prompt_logprobs": ("prompt_logprobs", "take prompt_logprobs out of teacher.offers, or start vLLM"),
    "text": ("text", "see what answers at teacher.url, and its log"),
}
LONGEST = 24  # tokens of a test's response
EQUAL = 0.1  # nats by which two readings of the same text may differ (bfloat16, batches)
SUM = 1e-2  # by which probabilities may sum to more than 1


class SelfTest:
    """The test of the server behind a client, in a dialect.

    Sends at most ten short requests, which are paid and not kept.

    Args:
        client: of the server.
        dialect: of its requests, with what it offers.
        several: whether it answers several samples at once.
    """

    def __init__(self, client: Client, dialect: Dialect, *, several: bool = True):
        self.client, self.dialect, self.several = client, dialect, several

    def check(self) -> None:
        """Raises ValueError, naming server, ability and remedy, for the first ability that the server lacks.

        Two different texts to one greedy request are logged as a caution: many servers compute in batches, whose
        rounding differs.
        """
        plain, offers = Wanted(self.dialect.form), self.dialect.offers
        [first], [again] = self._asked({}, plain), self._asked({}, plain)
        if first.text != again.text:
            log.warning(
                "%s generates different texts to one greedy request; greedy labels are samples", self.client.url
            )
        self._check_end(first)
        if self.several:
            self._asked({"n": 2, "temperature": 1.0}, Wanted(self.dialect.form, 2))
        if offers & {"logprobs", "top_logprobs"}:
            self._check_logprobs()
        if "structured" in offers:
            self._asked(following(SCHEMA), Wanted(self.dialect.form, schema=SCHEMA))
        if "prompt_logprobs" in offers:
            self._check_reading()

    def _asked(self, more: Mapping[str, Any], wanted: Wanted) -> list[Answer]:
        """The answers to the test's prompt. Raises ValueError where the content is never right."""
        return parsed(self._right(Request("the self-test", self._body(more), wanted)), wanted)[0]

    def _right(self, request: Request) -> str:
        """The body of a reply with what was requested. Raises ValueError where it never is."""
        fault = Fault("")
        for _ in range(self.client.connection.attempts):
            content = self.client.sent(request)
            try:
                parsed(content, request.wanted)
                return content
            except Fault as found:
                fault = found
        ability, remedy = REMEDIES[fault.missing or "text"]
        self._refuse(ability, str(fault), remedy)

    def _body(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request for a greedy text, without what the run's own requests have beside."""
        plain = replace(self.dialect, offers=frozenset({"text"}), schema=None)
        body = plain.body([{"role": "user", "content": PROMPT}], LONGEST, temperature=0.0)
        return plain.completed({**body, **more})

    def _check_end(self, answer: Answer) -> None:
        """Refuse a control token in a text, for template or end token are not the model's, and hidden truncation."""
        if found := CONTROL.search(answer.text):
            self._refuse(
                "text",
                f"a response holds the control token {found.group()!r}, so that responses do not end where the model "
                "ends them",
                "start the server with the model's own template and end tokens, or set teacher.parameters.stop",
            )
        wanted = Wanted(self.dialect.form)
        short = Request("the self-test", self._body({self.dialect.length: 1}), wanted)
        [cut], _ = parsed(self.client.sent(short), wanted, empty=True)
        if cut.finished:
            self._refuse(
                "text",
                "a response of one token counts as finished, so that truncated ones cannot be recognised",
                "start a server whose finish_reason is length then",
            )

    def _check_logprobs(self) -> None:
        wanted = Wanted(self.dialect.form, steps=True)
        first, again = (self._asked(self.dialect.asking_logprobs(), wanted)[0].steps for _ in range(2))
        for step in first:
            self._check_step(step)
        pairs = zip(first, again, strict=False)
        worst = max((abs(one.logprob - two.logprob) for one, two in pairs if one.token == two.token), default=0.0)
        self._check_alike("logprobs", worst)

    def _check_step(self, step: Step) -> None:
        """Refuse what are no log-probabilities of the chosen token and its rivals, in nats."""
        where, total = f"beside the token {step.token!r}", sum(math.exp(one.logprob) for one in step.top_logprobs)
        if "top_logprobs" in self.dialect.offers and not step.top_logprobs:
            self._refuse("top_logprobs", f"there are none {where}", "take top_logprobs out of teacher.offers")
        if total > 1 + SUM:
            fact = f"the probabilities {where} sum to {total:.3g}, so that they are no natural logarithms"
            self._refuse("top_logprobs", fact, "take it out of teacher.offers, or start another server")
        own = [one.logprob for one in step.top_logprobs if one.token == step.token]
        if own and min(abs(value - step.logprob) for value in own) > EQUAL:
            fact = (
                f"the token {step.token!r} has {step.logprob:.3g} nats as the chosen one and {own[0]:.3g} in the list"
            )
            self._refuse("logprobs", fact, "start the server with processed log-probabilities")

    def _check_reading(self) -> None:
        """Refuse a server that does not score every token of a given text, or not twice alike."""
        body = {"model": self.dialect.served_model, "prompt": PROMPT, self.dialect.length: 1, "temperature": 0.0}
        body = self.dialect.completed({**body, "prompt_logprobs": 0})  # of the text's own tokens alone
        first, again = (
            self._read(Request("the self-test", body, Wanted("completions", reading=True))) for _ in range(2)
        )
        if len(first) < 2 or None in first[1:] or len(first) != len(again):
            fact = f"of a given text {sum(one is not None for one in first)} tokens have a log-probability"
            self._refuse("prompt_logprobs", fact, REMEDIES["prompt_logprobs"][1])
        pairs = zip(first[1:], again[1:], strict=True)
        self._check_alike("prompt_logprobs", max(abs(one - two) for one, two in pairs if one and two))

    def _read(self, request: Request) -> Sequence[float | None]:
        """The log-probability of each token of a prompt; the first has none."""
        content = self._right(request)
        reply = Reply.model_validate_json(content)
        found = reply.choices[0].prompt_logprobs or reply.prompt_logprobs or []
        return [None if not entry else max(one["logprob"] for one in entry.values()) for entry in found]

    def _check_alike(self, ability: str, worst: float) -> None:
        if worst > EQUAL:
            fact = f"the log-probabilities of one text differ by {worst:.2g} nats between two requests"
            self._refuse(ability, fact, f"take {ability} out of teacher.offers")

    def _refuse(self, ability: str, fact: str, remedy: str) -> NoReturn:
        served = self.dialect.served_model
        raise ValueError(f"{self.client.url} failed the test of {ability} of {served}: {fact}; {remedy}")
