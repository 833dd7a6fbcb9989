"""Requests to a server: concurrent, paced, within a budget; each reply is kept when it arrives."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from kd.artifacts import key
from kd.teachers.endpoint.limits import Pace, Purse, Tokens
from kd.teachers.endpoint.replies import Answer, Empty, Fault, Wanted, parsed, usage_of
from kd.teachers.endpoint.store import Kept, ReplyStore

log = logging.getLogger(__name__)

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
DENIED = frozenset({401, 403})


@dataclass(frozen=True)
class Connection:
    """The way to a server; no text depends on it.

    Args:
        api_key: of the account, from the environment alone; None: the server needs none.
        timeout: seconds without a byte from the server after which a request has failed.
        retries: of a request that reached no server, was cut off or answered 408, 409, 429 or 5xx; with growing random
            pauses, or those that the server requests.
        attempts: at a reply whose content is not what was requested (malformed, empty, of another number).
        concurrency: requests at a time.
        requests_per_minute: of them, retries counted; None: no limit.
    """

    api_key: str | None = None
    timeout: PositiveFloat | PositiveInt = 120.0
    retries: NonNegativeInt = 4
    attempts: PositiveInt = 3
    concurrency: PositiveInt = 8
    requests_per_minute: PositiveFloat | PositiveInt | None = None


class Request(NamedTuple):
    """One request. name: what it is for. seed, sample: of its responses, beside the body."""

    name: str
    body: Mapping[str, Any]
    wanted: Wanted
    seed: int | None = None
    sample: int = 0

    def key(self, identity: str) -> str:
        """The name under which its reply is kept: of the model, the body, the form, the seed."""
        content = {"model": identity, "form": self.wanted.form, "body": dict(self.body)}
        return key({**content, "seed": self.seed, "sample": self.sample})

    @property
    def most(self) -> Tokens:
        """The most tokens that it may cost: no token is shorter than a byte."""
        limits = [value for name, value in self.body.items() if name.startswith("max_") and isinstance(value, int)]
        return Tokens(len(json.dumps(self.body).encode()), self.wanted.responses * max(limits, default=0))


class Replied(NamedTuple):
    """The answers to a request, the tokens and the seconds that they cost, whether they were there before, the body."""

    answers: list[Answer]
    tokens: Tokens
    seconds: float
    kept: bool
    content: str


class Client:
    """The requests of one teacher.

    Args:
        url: of the server's API, with its /v1.
        identity: names the model behind it, under which replies are kept.
        connection: see `Connection`.
        store: of the replies.
        purse: see `Purse`.
    """

    def __init__(self, url: str, identity: str, connection: Connection, store: ReplyStore, purse: Purse):
        self.url, self.identity, self.connection = url.rstrip("/"), identity, connection
        self.store, self.purse, self._pace = store, purse, Pace(connection.requests_per_minute)
        self._charged = set[str]()  # requests whose cost the purse has
        self._openai = _sdk(self.url, connection, self._pace)

    def replies(self, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> list[Replied]:
        """The answers to each request. Equal requests are sent once. `progress`: called with numbers of responses.

        Replies on disk come first, so that their cost counts before more is paid. An error ends the call; requests
        under way are finished, and their replies kept, before it is raised.
        """
        keys = [request.key(self.identity) for request in requests]
        different, counts = dict(zip(keys, requests, strict=True)), Counter(keys)
        kept = {name: reply for name in different if (reply := self.store.get(name)) is not None}
        found = {name: self._replied(name, different[name], reply, kept=True) for name, reply in kept.items()}
        if progress is not None and kept:
            progress(sum(counts[name] * len(found[name].answers) for name in kept))
        pool = ThreadPoolExecutor(self.connection.concurrency)
        try:
            waiting = {
                pool.submit(self._requested, name, different[name]): name for name in different if name not in kept
            }
            for done in as_completed(waiting):
                name = waiting[done]
                found[name] = self._replied(name, different[name], done.result(), kept=False)
                if progress is not None:
                    progress(counts[name] * len(found[name].answers))
        finally:
            pool.shutdown(cancel_futures=True)
        return [found[name] for name in keys]

    def is_kept(self, request: Request) -> bool:
        """Return whether its reply is on disk."""
        return self.store.get(request.key(self.identity)) is not None

    def sent(self, request: Request) -> str:
        """The body of the server's reply to a request that is sent now, whatever is kept; its cost is counted.

        Raises ConnectionError, TimeoutError, and ValueError with the server's reason.
        """
        self.purse.reserve(request.most)
        try:
            content = self._send(request)
            self.purse.pay(_tokens(usage_of(content), request))
            return content
        finally:
            self.purse.release(request.most)

    def _replied(self, name: str, request: Request, reply: Kept, *, kept: bool) -> Replied:
        answers, usage = parsed(reply.content, request.wanted, empty=True)
        tokens = _tokens(usage, request)
        if kept and name not in self._charged:
            self.purse.pay(tokens)
        self._charged.add(name)
        return Replied(answers, tokens, reply.seconds, kept, reply.content)

    def _requested(self, name: str, request: Request) -> Kept:
        """The reply, sent for until its content is right, and kept. Raises ValueError where it never is."""
        for attempt in range(1, self.connection.attempts + 1):
            started = time.perf_counter()
            content, last = self.sent(request), attempt == self.connection.attempts
            try:
                parsed(content, request.wanted)
            except Fault as fault:
                if not last:
                    continue
                if not isinstance(fault, Empty):
                    raise ValueError(self._never_right(request, fault)) from None
                log.warning("%s: %s after %d attempts; it counts as unfinished", request.name, fault, attempt)
            reply = Kept(content, time.perf_counter() - started)
            self.store.put(name, json.dumps(request.body, ensure_ascii=False), reply)
            return reply
        raise AssertionError("attempts is positive")

    def _send(self, request: Request) -> str:
        import httpx2
        import openai

        connection, path = self.connection, PATHS[request.wanted.form]
        try:
            return self._openai.post(path, body=dict(request.body), cast_to=httpx2.Response).text
        except openai.APITimeoutError:
            raise TimeoutError(
                f"{self.url} was silent for teacher.connection.timeout={connection.timeout} s, in "
                f"{connection.retries + 1} requests for {request.name}; raise it, or lower "
                "teacher.connection.concurrency"
            ) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            raise ConnectionError(
                f"no server answers at {self.url} ({cause}, {connection.retries + 1} requests); start one, or correct "
                "teacher.url"
            ) from None
        except openai.APIStatusError as error:
            raise ValueError(self._refused(request, error)) from None

    def _refused(self, request: Request, error: Any) -> str:
        reason = " ".join(str(error.response.text).split())[:300]
        status = error.status_code
        if status in DENIED:
            given = "the key of teacher.connection.api_key" if self.connection.api_key else "a request without a key"
            return (
                f"{self.url} refuses {given} ({status}): {reason}; set OPENAI_API_KEY, or the variable that "
                "teacher.connection.api_key reads, in the environment"
            )
        again = status in (408, 409, 429) or status >= 500
        times = f" to {self.connection.retries + 1} requests" if again else ""
        remedy = (
            "lower teacher.connection.concurrency or requests_per_minute, and start the same command again: what was "
            "answered is kept"
            if again
            else "see what the server's documentation allows (teacher.parameters, teacher.length)"
        )
        return f"{self.url} answers {status}{times} for {request.name}: {reason}; {remedy}"

    def _never_right(self, request: Request, fault: Fault) -> str:
        remedy = {
            "n": "set teacher.together=false, which requests each response apart",
            "logprobs": "take logprobs out of teacher.offers",
            "prompt_logprobs": "take prompt_logprobs out of teacher.offers",
            "structured": "take a model that follows a schema, or teacher.schema=null",
        }.get(fault.missing or "", "look at what answers there")
        times = self.connection.attempts
        return f"{self.url} answered {request.name} {times} times, and never right: {fault}; {remedy}"


def _tokens(usage: Any, request: Request) -> Tokens:
    """The tokens that the server counted; where it counts none, the most that the request may have cost."""
    return request.most if usage is None else Tokens(usage.prompt_tokens, usage.completion_tokens)


def _sdk(url: str, connection: Connection, pace: Pace) -> Any:
    """OpenAI's client of the server. A proxy of the environment cannot reach this machine's own ports."""
    import openai

    http = openai.DefaultHttpxClient(
        trust_env=not _is_here(url), event_hooks={"request": [lambda _: pace.wait()]}, timeout=connection.timeout
    )
    return openai.OpenAI(
        base_url=url,
        api_key=connection.api_key or "none",
        timeout=connection.timeout,
        max_retries=connection.retries,
        http_client=http,
    )


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reply_file(folder: Path, identity: str) -> Path:
    """The file of the replies of the model that `identity` names."""
    return folder / f"{key({'model': identity})[:16]}.sqlite"
