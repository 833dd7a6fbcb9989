"""What a server may answer that vLLM would not: each ends in one sentence, from a real socket.

Run: python -m pytest tests/generators/test_vllm_answers.py
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kd.generators import vllm_server
from kd.generators.vllm_server import Server
from tests.generators.completions import Served, ids_of, serving
from tests.generators.test_vllm_server import SAMPLED, asked
from tests.tiny import tiny

PROMPTS = [[5, 6, 7]]
MODELS, RPC, TEXT = "/v1/models", "/collective_rpc", "/v1/completions"
Change = Callable[[Any], Any]  # of an answer as it should be; bytes are sent as they are


@pytest.fixture(scope="module")
def student():
    return tiny(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def served(student) -> Iterator[Served]:
    with serving(Served(student)) as found:
        yield found


def connect(url: str, folder: Any, **settings: Any) -> Server:
    return Server(**{"url": url, "weights": str(folder), "retries": 0, "staleness": None, "timeout": 30.0, **settings})


def one_sentence(error: BaseException, url: str) -> str:
    """It is of a kind that a run ends with, shows no other error, and names the server or what it holds."""
    assert type(error) in (ValueError, ConnectionError, TimeoutError)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    said = str(error)
    assert "\n" not in said
    assert url in said or "the engine" in said
    assert ";" in said or " answers " in said  # and the way out, or the server's own words
    return said


# ---- bodies ----------------------------------------------------------------------------------------------------------


def first(**fields: Any) -> Change:
    """Fields of the first response in other ways."""
    return lambda told: {"choices": [{**told["choices"][0], **fields}, *told["choices"][1:]]}


def ids(change: Callable[[list[int]], Any]) -> Change:
    return lambda told: first(token_ids=change(told["choices"][0]["token_ids"]))(told)


def logprobs(change: Callable[[list[float]], Any]) -> Change:
    def changed(told: Any) -> Any:
        found = told["choices"][0]["logprobs"]["token_logprobs"]
        return first(logprobs={"token_logprobs": change(found)})(told)

    return changed


def scores(change: Callable[[list[Any]], Any]) -> Change:
    return lambda told: first(prompt_logprobs=change(told["choices"][0]["prompt_logprobs"]))(told)


def each_score(change: Callable[[str, Any], tuple[str, Any]]) -> Change:
    """Of every token but the first, which has none."""
    return scores(lambda told: [None, *(dict(change(i, x) for i, x in entry.items()) for entry in told[1:])])


def each(**fields: Any) -> Change:
    """Fields of every response in other ways."""
    return lambda told: {"choices": [{**choice, **fields} for choice in told["choices"]]}


def card(**fields: Any) -> Change:
    return lambda told: {"data": [{**told["data"][0], **fields}]}


def body(content: Any) -> Change:
    return lambda told: content


JUNK = {
    "nothing": b"",
    "null": None,
    "a list": [],
    "no fields": {},
    "a page": b"<!doctype html><title>Sign in</title>",
    "half of it": b'{"data": [{"id": "student"',
    "no UTF-8": b'{"data": [{"id": "\xff\xfe"}]}',
    "a hundred thousand brackets": b"[" * 100_000,
}
OF_MODELS = {
    "data null": body({"data": None}),
    "data an object": body({"data": {}}),
    "numbers": body({"data": [1]}),
    "no id": body({"data": [{}]}),
    "id null": card(id=None),
    "id empty": card(id=""),
    "id a number": card(id=7),
    "room in words": card(max_model_len="long"),
    "room negative": card(max_model_len=-1),
    "room in halves": card(max_model_len=2.5),
    "none": body({"data": []}),
}
OF_RPC = {
    "results null": body({"results": None}),
    "no results": body({"results": []}),
    "results a word": body({"results": "ok"}),
    "an error": body({"error": {"message": "no such method"}}),
}
OF_SCORES = {
    "no choice": body({"choices": []}),
    "no scores": scores(lambda told: None),
    "one short": scores(lambda told: told[:-1]),
    "one more": scores(lambda told: [*told, told[-1]]),
    "null inside": scores(lambda told: [None, None, *told[2:]]),
    "of other ids": each_score(lambda i, x: ("-1", x)),
    "without a number": each_score(lambda i, x: (i, {})),
    "in words": each_score(lambda i, x: (i, {"logprob": "low"})),
    "not a number": each_score(lambda i, x: (i, {"logprob": float("nan")})),
    "above 0": each_score(lambda i, x: (i, {"logprob": 2.0})),
}
OF_TEXT = {
    "choices null": body({"choices": None}),
    "choices an object": body({"choices": {}}),
    "no choices": body({"choices": []}),
    "index null": each(index=None),
    "an index twice": each(index=0),
    "an index too high": first(index=7),
    "an index in words": first(index="0"),
    "an index below 0": first(index=-1),
    "one too many": lambda told: {"choices": [*told["choices"], {**told["choices"][0], "index": 2}]},
    "one too few": lambda told: {"choices": told["choices"][1:]},
    "ids null": ids(lambda found: None),
    "no ids": ids(lambda found: []),
    "ids in words": ids(lambda found: [str(i) for i in found]),
    "ids in halves": ids(lambda found: [i + 0.5 for i in found]),
    "ids in lists": ids(lambda found: [found]),
    "ids true": ids(lambda found: [True, *found[1:]]),
    "an id below 0": ids(lambda found: [-1, *found[1:]]),
    "an id beyond the vocabulary": ids(lambda found: [261, *found[1:]]),
    "an id beyond 64 bits": ids(lambda found: [2**70, *found[1:]]),
    "more ids than log-probabilities": ids(lambda found: [*found, 5]),
    "log-probabilities null": first(logprobs=None),
    "no log-probabilities": first(logprobs={}),
    "one null": logprobs(lambda found: [None, *found[1:]]),
    "one short": logprobs(lambda found: found[:-1]),
    "one more": logprobs(lambda found: [*found, -1.0]),
    "one not a number": logprobs(lambda found: [float("nan"), *found[1:]]),
    "one infinite": logprobs(lambda found: [-float("inf"), *found[1:]]),
    "one above 0": logprobs(lambda found: [0.5, *found[1:]]),
    "all in words": logprobs(lambda found: [str(x) for x in found]),
    "another prompt": first(prompt_token_ids=[5, 6, 8]),
    "longer than asked": each(token_ids=[7] * 13, logprobs={"token_logprobs": [-1.0] * 13}),
    "shorter without an end": each(token_ids=[7, 7], logprobs={"token_logprobs": [-1.0] * 2}),
    "an end in the middle": each(token_ids=[7, 257, 7, 257], logprobs={"token_logprobs": [-1.0] * 4}),
    "probabilities of another model": each(token_ids=[7] * 12, logprobs={"token_logprobs": [0.0] * 12}),
}
WRONG = [
    *((MODELS, name, body(content)) for name, content in JUNK.items()),
    *((MODELS, name, change) for name, change in OF_MODELS.items()),
    *((RPC, name, body(content)) for name, content in JUNK.items()),
    *((RPC, name, change) for name, change in OF_RPC.items()),
    *((TEXT, name, body(content)) for name, content in JUNK.items()),
    *((TEXT, name, change) for name, change in OF_TEXT.items()),
]


def says(served: Served, path: str, change: Change, monkeypatch: pytest.MonkeyPatch, *, scoring: bool = False) -> None:
    """The server answers `path` in another way."""
    there = served.answer

    def changed(asked_path: str, asked_body: dict[str, Any]) -> tuple[int, Any]:
        status, told = there(asked_path, asked_body)
        mine = asked_path == path and ("prompt_logprobs" in asked_body) is scoring
        return status, change(told) if mine else told

    monkeypatch.setattr(served, "answer", changed)


def test_there_are_enough_of_them(student):
    assert len(WRONG) + len(OF_SCORES) + len(STATUSES) + len(BROKEN) >= 53
    assert (student.vocabulary, student.tokenizer.eos_token_id) == (261, 257)  # as in OF_TEXT


@pytest.mark.parametrize(("path", "name", "change"), WRONG, ids=[f"{path} {name}" for path, name, _ in WRONG])
def test_a_wrong_body_is_refused_in_one_sentence(served, student, tmp_path, monkeypatch, path, name, change):
    says(served, path, change, monkeypatch)
    generator = connect(served.url, tmp_path, staleness=0 if path == RPC else None)
    with pytest.raises((ValueError, OSError)) as caught:
        asked(generator, student, PROMPTS, SAMPLED, samples=2)
    one_sentence(caught.value, served.url)


@pytest.mark.parametrize("change", OF_SCORES.values(), ids=OF_SCORES)
def test_a_wrong_score_is_refused_in_one_sentence(served, student, tmp_path, monkeypatch, change):
    says(served, TEXT, change, monkeypatch, scoring=True)
    with pytest.raises((ValueError, OSError)) as caught:
        asked(connect(served.url, tmp_path, staleness=0), student, PROMPTS)
    one_sentence(caught.value, served.url)


# ---- statuses --------------------------------------------------------------------------------------------------------

STATUSES = (400, 401, 403, 405, 413, 418, 422, 429, 500, 501, 502, 503, 504)


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_reported_with_the_servers_message(served, student, tmp_path, monkeypatch, status):
    words = b"<p>no\n\n  room</p>" * 100
    monkeypatch.setattr(served, "answer", lambda path, body: (status, words))
    with pytest.raises(ValueError) as caught:  # noqa: PT011, for the sentence is looked at below
        asked(connect(served.url, tmp_path), student, PROMPTS)
    said = one_sentence(caught.value, served.url)
    assert f"answers {status}: <p>no room</p>" in said
    assert len(said) < 500


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_and_one_in_trouble_get_the_request_again(served, student, tmp_path, monkeypatch, status):
    there, met = served.answer, []

    def busy_at_first(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        met.append(path)
        return there(path, body) if met.count(path) > 1 else (status, b"later")

    expected = ids_of(asked(connect(served.url, tmp_path), student, PROMPTS))
    monkeypatch.setattr(served, "answer", busy_at_first)
    assert ids_of(asked(connect(served.url, tmp_path, retries=1), student, PROMPTS)) == expected
    assert [met.count(path) for path in (MODELS, TEXT)] == [2, 2]


def test_retries_have_an_end(served, student, tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(served, "answer", lambda path, body: (met.append(path), (503, b"full"))[1])
    with pytest.raises(ValueError, match="answers 503 after 2 retries: full"):
        asked(connect(served.url, tmp_path, retries=2), student, PROMPTS)
    assert len(met) == 3


def test_a_server_cannot_request_an_hour():
    """Retry-After counts, up to a bound."""

    class Told:
        def __init__(self, seconds: str) -> None:
            self.headers = {"Retry-After": seconds}

    patience = vllm_server.Patience(3)
    assert patience.get_retry_after(Told("2")) == 2
    assert patience.get_retry_after(Told("3600")) == vllm_server.PAUSE


def test_a_server_that_comes_up_meanwhile_is_found(student, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    done = threading.Event()

    def later() -> None:
        time.sleep(0.3)
        with serving(Served(student), port):
            done.wait(60)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        assert asked(connect(f"http://127.0.0.1:{port}", tmp_path, retries=4), student, PROMPTS)
    finally:
        done.set()
        thread.join()


# ---- what is no answer -----------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(OK + b"Content-Length: 1000\r\n\r\n{")


def hung_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def another_protocol(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def no_gzip(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone")


def in_a_circle(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 307 There\r\nLocation: /v1/models\r\nContent-Length: 0\r\n\r\n")


def wrong_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(OK + b"\r\n")
    while True:
        handler.wfile.write(b"{" * 1000)


def drop_by_drop(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(OK + b"\r\n")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.1)


BROKEN = (cut_short, hung_up, another_protocol, no_gzip, in_a_circle, wrong_chunks, endless, drop_by_drop)


@pytest.mark.parametrize("speaks", BROKEN, ids=lambda speaks: speaks.__name__)
def test_what_is_no_answer_ends_in_one_sentence(student, tmp_path, monkeypatch, speaks):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client has gone
                speaks(self)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(vllm_server, "LARGEST", 2**20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            asked(connect(url, tmp_path, timeout=1.0), student, PROMPTS)
        one_sentence(caught.value, url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
