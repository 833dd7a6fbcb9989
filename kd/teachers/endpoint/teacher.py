"""A teacher behind a server with OpenAI's protocol (vLLM, SGLang, llama.cpp, a commercial API)."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from pydantic import Field, PositiveInt
from transformers import PreTrainedTokenizerBase

from kd.artifacts import cache_root
from kd.data.sequences import Encoder
from kd.generators import Generator
from kd.generators.account import Spent, charge
from kd.generators.settings import Decoding
from kd.models.tokenizers import byte_tokenizer, load_tokenizer
from kd.sources.addresses import keys_of, model_folder
from kd.teachers.endpoint.client import Client, Connection, Replied, Request, reply_file
from kd.teachers.endpoint.dialect import Dialect
from kd.teachers.endpoint.limits import Amounts, Prices, Purse
from kd.teachers.endpoint.listing import Generated, read
from kd.teachers.endpoint.replies import Form
from kd.teachers.endpoint.self_test import SelfTest
from kd.teachers.endpoint.store import ReplyStore
from kd.teachers.interface import Answers, Teacher
from kd.teachers.listed import Row
from kd.types import Batch, Record

Ability = Literal["text", "logprobs", "top_logprobs", "prompt_logprobs", "structured"]
Text = Annotated[str, Field(min_length=1)]
LOGITS = frozenset({"top_logprobs", "prompt_logprobs"})  # abilities from which a cache of targets can be made
APART = frozenset({"connection", "budget", "price", "self_test"})  # settings on which no text depends


class Endpoint(Teacher):
    """A model on a server; what it provides are the abilities that its yaml declares under `offers`.

    Each reply is kept on disk when it arrives, under the model, the request's body and the seed, so that nothing is
    paid twice. Before the first request of a process that is not kept, the server is tested
    (`kd.teachers.endpoint.self_test`).

    Args:
        url: of the server's API, with its /v1.
        served_model: the model's name on the server.
        form: chat: the record's messages; the server applies its template. completions: their texts, joined by blank
            lines, after which a newline opens the answer (base models).
        offers: the server's abilities: text; logprobs, of the tokens that it generates; top_logprobs, the likeliest
            tokens beside each; prompt_logprobs, of a given text's tokens (vLLM); structured, texts of a JSON schema.
        identity: names the model (weights, quantisation, template) for what is kept; None: `served_model` at `url`.
        tokenizer: the address of the served model's tokenizer, or `bytes`: for targets from log-probabilities.
        vocabulary: ids of its head; None: as many as the tokenizer has.
        parameters: further keys of each request's body, as {reasoning_effort: low}; null leaves one of ours out.
        length: the body's key for the longest response; OpenAI's newer models take max_completion_tokens.
        together: whether all samples of a prompt are one request (`n`), so that the prompt is paid once.
        schema: a JSON schema that each text follows; its top level is checked.
        top: likeliest tokens that are requested beside each, where top_logprobs are offered.
        connection: key, time-outs, retries, concurrency (`kd.teachers.endpoint.client.Connection`).
        budget: tokens and money that may be spent; a text from disk counts as when it was paid.
        price: of a million tokens of input and output, in any one currency; null: nothing.
        self_test: whether the server is tested.

    Raises:
        ValueError: no address; the extra `endpoint` is not installed; a schema without the ability; a limit on money
            without a price.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"text"})
    lists_targets: ClassVar[bool] = True

    def __init__(
        self,
        *,
        url: Text,
        served_model: Text,
        form: Form = "chat",
        offers: Sequence[Ability] = ("text",),
        identity: Text | None = None,
        tokenizer: str | Mapping[str, Any] | None = None,
        vocabulary: PositiveInt | None = None,
        parameters: Mapping[str, Any] | None = None,
        length: Text = "max_tokens",
        together: bool = True,
        schema: Mapping[str, Any] | None = None,
        top: Annotated[int, Field(ge=1, le=100)] = 20,
        connection: Connection,
        budget: Amounts | None = None,
        price: Prices | None = None,
        self_test: bool = True,
    ):
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"teacher.url={url} is no address of a server; give one like http://localhost:8000/v1")
        if find_spec("openai") is None:
            raise ValueError("teacher=endpoint needs the package openai; pip install 'kd[endpoint]'")
        if schema is not None and "structured" not in offers:
            raise ValueError(
                "teacher.schema needs a server that follows a schema, but teacher.offers has no structured; add it "
                "where the server does, or set teacher.schema=null"
            )
        self.url, self.together, self.connection, self.tested = url.rstrip("/"), together, connection, not self_test
        self.dialect = Dialect(served_model, form, frozenset(offers), dict(parameters or {}), length, schema, top)
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._kept_steps: Generated | None = None  # read when the first target is
        self._named = identity or f"{served_model} at {self.url.replace(place.netloc, _without_account(place.netloc))}"
        self._path = reply_file(cache_root() / "replies", self._named)
        self._purse = Purse(budget or {}, price or {}, str(self._path))

    @classmethod
    def provided(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """See `Teacher`: text, and the likeliest logits where log-probabilities are offered and the ids are known."""
        offers = frozenset(settings.get("offers", ("text",)))
        lists = offers & LOGITS and settings.get("tokenizer") is not None
        return (offers & {"text"}) | ({"logits"} if lists else frozenset[str]())

    @classmethod
    def uncounted(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """See `Teacher`: with an `identity`, the server's address is among them."""
        return APART | ({"url"} if settings.get("identity") else frozenset[str]())

    def identity(self) -> str:
        """The model's name, and the settings on which its texts depend."""
        own = self.dialect
        content = {"form": own.form, "parameters": own.parameters, "schema": own.schema}
        return f"endpoint {self._named} {json.dumps(content, sort_keys=True)}"

    @cached_property
    def words(self) -> PreTrainedTokenizerBase | None:
        """The served model's tokenizer, where the config names it."""
        if self._tokenizer is None or self._tokenizer == "bytes":
            return None if self._tokenizer is None else byte_tokenizer()
        return load_tokenizer(model_folder(**keys_of(self._tokenizer)))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """See `words`."""
        return self.words

    @property
    def vocabulary(self) -> int:
        """The number of ids, where the tokenizer is known."""
        return self._vocabulary or (0 if self.words is None else len(self.words))

    @cached_property
    def client(self) -> Client:
        """The requests to the server, made when they are needed."""
        return Client(self.url, self._named, self.connection, ReplyStore(self._path), self._purse)

    def generate(
        self,
        records: Sequence[Record],
        *,
        decoding: Decoding,
        engine: Generator | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """See `Teacher`; `engine` and the batch size count for nothing here. Charges money, requests and seconds.

        Raises:
            ConnectionError, TimeoutError: no server answers, or not in time.
            ValueError: a record with images; the server refuses a request, lacks an ability or never gives what was
                requested; the budget is spent.
        """
        requests = [request for record in records for request in self._requests(record, decoding)]
        self._test(requests)
        found = self.client.replies(requests, progress)
        charge(self._spent(found))
        each = len(requests) // len(records) if records else 1
        return [_answers(found[i : i + each]) for i in range(0, len(found), each)]

    def listed(self, batch: Batch, labels: Sequence[Sequence[int]]) -> list[list[Row]]:
        """See `Teacher`: of given texts where the server offers prompt_logprobs, else of those that it generated.

        Raises ValueError for a text that it did not generate.
        """
        if "prompt_logprobs" in self.dialect.offers:
            self._test([])
            rows, found = read(self.client, self.dialect, _sequences(batch), labels, "a response")
            charge(self._spent(found))
            return rows
        return [self._generated(batch, i, own) for i, own in enumerate(labels)]

    def check(
        self, records: Sequence[Record], read: Sequence[Record], audited: Sequence[Record], encoder: Encoder
    ) -> None:
        """Raises ValueError, with the record's name, for a response that the server did not generate."""
        for record in read if self._reads_kept else ():
            for response in record.responses:
                self._rows(record, response.text, ())

    def take_report(self) -> dict[str, tuple[float, float]]:
        """See `kd.types.Reports`: the share of tokens at which the server's distribution is known."""
        if not self._reads_kept:
            return {}
        kept, counts = self._kept_steps, (0.0, 0.0)
        if kept is not None:
            counts, kept.found, kept.tokens = (float(kept.found), float(kept.tokens)), 0, 0
        return {"teacher_listed": counts}

    @property
    def reads_elsewhere(self) -> bool:
        """See `Teacher`: where the server reads given texts."""
        return "prompt_logprobs" in self.dialect.offers

    @property
    def _reads_kept(self) -> bool:
        """Whether its targets are those of the texts that it generated."""
        return "top_logprobs" in self.dialect.offers and "prompt_logprobs" not in self.dialect.offers

    def _generated(self, batch: Batch, i: int, labels: Sequence[int]) -> list[Row]:
        record = batch.records[i // batch.group_size]
        return self._rows(record, record.responses[i % batch.group_size].text, labels)

    def _rows(self, record: Record, text: str, labels: Sequence[int]) -> list[Row]:
        prompt = self.dialect.prompt(record.prompt)
        if self._kept_steps is None:
            assert self.words is not None  # `provided`
            self._kept_steps = Generated(self.client.store, self.dialect, self.words)
        if (rows := self._kept_steps.rows(next(iter(prompt.values())), text, labels)) is None:
            raise ValueError(
                f"record {record.id}: the server did not generate the response {text[:40]!r} with log-probabilities; "
                "take augmentation=labeling with teacher.offers=[text,top_logprobs], or a server with "
                "prompt_logprobs"
            )
        return rows

    def _requests(self, record: Record, decoding: Decoding) -> list[Request]:
        """The requests for the responses to a record: one, or one for each response; each with a seed of its own.

        Raises ValueError for a record with images.
        """
        if record.images:
            raise ValueError(
                f"record {record.id} has images, which teacher=endpoint does not send; take a skill of text alone"
            )
        name, each = f"record {record.id}", decoding.samples if self.together else 1
        settings = {"temperature": float(decoding.temperature), "top_p": float(decoding.top_p), "n": each}
        body, wanted = self.dialect.body(record.prompt, decoding.max_new_tokens, **settings), self.dialect.wanted(each)
        count = decoding.samples // each
        if not decoding.temperature:
            return [Request(name, body, wanted, sample=i) for i in range(count)]
        seeds = torch.randint(2**31, (count,)).tolist()
        return [Request(name, self.dialect.completed({**body, "seed": seed}), wanted, seed) for seed in seeds]

    def _test(self, requests: Sequence[Request]) -> None:
        """Test the server, once, before the first request that has to be paid."""
        if not self.tested and not (requests and all(map(self.client.is_kept, requests))):
            SelfTest(self.client, self.dialect, several=self.together).check()
            self.tested = True

    def _spent(self, found: Sequence[Replied]) -> Spent:
        money = sum(self._purse.money(one.tokens) for one in found)
        kept = sum(one.seconds for one in found if one.kept) / self.connection.concurrency
        return Spent(requests=len(found), money=money, seconds=kept)


def _answers(replies: Sequence[Replied]) -> Answers:
    answers = [answer for reply in replies for answer in reply.answers]
    tokens = sum(sum(reply.tokens) for reply in replies)
    return Answers(tuple(answer.text for answer in answers), tuple(answer.finished for answer in answers), tokens)


def _sequences(batch: Batch) -> list[list[int]]:
    """The ids of each sequence, the last label included."""
    read, real = batch.teacher, batch.teacher.real
    rows = zip(read.tokens.cpu(), read.labels.cpu(), real.cpu(), strict=True)
    return [[*tokens[own].tolist(), int(labels[own][-1])] for tokens, labels, own in rows]


def _without_account(place: str) -> str:
    """The host and port of an address, without a user and a password."""
    return place.rpartition("@")[2]
