"""Requests to a server: faults, what is kept, what is paid, and its test.

Run: python -m pytest tests/teachers/test_endpoint_client.py
"""

import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd.teachers.endpoint.client import Client, Connection, Replied, Request
from kd.teachers.endpoint.dialect import Dialect
from kd.teachers.endpoint.limits import Purse, Tokens
from kd.teachers.endpoint.self_test import SelfTest
from kd.teachers.endpoint.store import ReplyStore
from tests.teachers.servers import Body, Scripted, plain, serving

PRICE = {"input": 1e6, "output": 2e6}  # a token costs 1, a generated one 2
ROOT = Path(__file__).parents[2]


def client(url: str, folder: Path, budget: Any = None, price: Any = None, **connection: Any) -> Client:
    settings = {"timeout": 1.0, "retries": 1, "attempts": 3, "concurrency": 4, **connection}
    path = folder / "replies.sqlite"
    return Client(
        url, "scripted", Connection(**settings), ReplyStore(path), Purse(budget or {}, price or {}, str(path))
    )


def asked(count: int, samples: int = 1, **settings: Any) -> list[Request]:
    dialect = Dialect("scripted", **settings)
    found = []
    for i in range(count):
        body = dialect.body([{"role": "user", "content": f"word{i} and more"}], 8, temperature=0.0, n=samples)
        found.append(Request(f"record r{i}", body, dialect.wanted(samples)))
    return found


def texts(replies: list[Replied]) -> list[str]:
    return [answer.text for reply in replies for answer in reply.answers]


def test_each_prompt_has_its_own_answer_and_its_cost(tmp_path):
    with serving(Scripted()) as server:
        found = client(server.url, tmp_path, price=PRICE).replies(asked(3))
    assert texts(found) == ["erom dna 0drow", "erom dna 1drow", "erom dna 2drow"]
    assert all(answer.finished for reply in found for answer in reply.answers)
    # [{"role": "user", "content": "word0 and more"}] is 6 words, its answer 3
    assert [tuple(reply.tokens) for reply in found] == [(6, 3)] * 3
    message = {"role": "user", "content": "word0 and more"}
    first = next(body for body in server.requests if "word0" in str(body))
    assert first == {"model": "scripted", "messages": [message], "max_tokens": 8, "temperature": 0.0, "n": 1}


def test_nothing_is_paid_twice(tmp_path):
    with serving(Scripted()) as server:
        first = client(server.url, tmp_path).replies(asked(4))
        again = client(server.url, tmp_path).replies(asked(4))
        assert len(server.requests) == 4
        assert [one._replace(kept=True) for one in first] == again
        assert not any(one.kept for one in first)
        assert (
            texts(client(server.url, tmp_path).replies([*asked(5), *asked(5)])) == [*texts(first), "erom dna 4drow"] * 2
        )
        assert len(server.requests) == 5  # equal requests of one call, too, are one


def test_seed_model_and_form_are_in_the_name_of_what_is_kept(tmp_path):
    [request] = asked(1)
    [other] = asked(1, form="completions")
    names = [request.key("a"), request.key("b"), request._replace(seed=1).key("a"), request._replace(sample=1).key("a")]
    assert len({*names, other.key("a")}) == 5
    assert request._replace(name="another record").key("a") == names[0]


# fault of the first request, or of every one; requests in all, error or None, words of the sentence
TABLE = [
    (["429"], 2, None, ""),
    (["500"], 2, None, ""),
    (["slow"], 2, None, ""),
    (["cut off"], 2, None, ""),
    (["malformed"], 2, None, ""),
    (["empty"], 2, None, ""),
    (["wrong count"], 2, None, ""),
    (["no choice"], 2, None, ""),
    (
        ["500"] * 9,
        2,
        ValueError,
        "answers 500 to 2 requests for record r0: .*out of memory.*; lower teacher.connection",
    ),
    (["429"] * 9, 2, ValueError, "answers 429 to 2 requests .*slow down.*what was answered is kept"),
    (["slow"] * 9, 2, TimeoutError, "was silent for teacher.connection.timeout=1.0 s, in 2 requests for record r0"),
    (["cut off"] * 9, 2, ConnectionError, "no server answers at http.* 2 requests"),
    (["400"], 1, ValueError, "answers 400 for record r0: .*context length exceeded.*teacher.length"),
    (["401"], 1, ValueError, "refuses a request without a key .401.*set OPENAI_API_KEY"),
    (["malformed"] * 9, 3, ValueError, "answered record r0 3 times, and never right: the reply is malformed"),
    (["wrong count"] * 9, 3, ValueError, "1 responses were requested, and it holds 2 .*teacher.together=false"),
    (["empty"] * 9, 3, None, ""),
]


@pytest.mark.parametrize(("faults", "requests", "error", "sentence"), TABLE)
def test_a_fault_is_answered_by_another_request_or_one_sentence(faults, requests, error, sentence, tmp_path, caplog):
    with serving(Scripted(faults=list(faults))) as server:
        if error is None:
            [[answer]] = [one.answers for one in client(server.url, tmp_path).replies(asked(1))]
            lost = faults == ["empty"] * 9
            assert (answer.text, answer.finished) == (("", False) if lost else ("erom dna 0drow", True))
            assert ("record r0: response 0 is empty" in caplog.text) is lost
        else:
            with pytest.raises(error, match=sentence) as raised:
                client(server.url, tmp_path).replies(asked(1))
            assert "\n" not in str(raised.value)
    assert len(server.requests) == requests


def test_the_page_has_the_table_of_faults():
    page = (ROOT / "docs" / "endpoint.md").read_text(encoding="utf-8").partition("| fault | of | requests |")[2]
    shown = re.findall(r"^\| ([\w ]+) \| (the first|every) request \| (\d) \| (.*?) \|$", page, flags=re.MULTILINE)
    lost = "an unfinished, empty response, with a warning"
    expected = []
    for faults, requests, error, _ in TABLE:
        result = error.__name__ if error else lost if len(faults) > 1 else "answered"
        expected.append((faults[0], "every" if len(faults) > 1 else "the first", str(requests), result))
    assert shown == expected


def test_a_server_that_is_not_there_is_named(tmp_path):
    with serving(Scripted()) as server:
        url = server.url
    with pytest.raises(ConnectionError, match=f"no server answers at {url} .ConnectError, 2 requests.; start one"):
        client(url, tmp_path).replies(asked(1))


def test_answers_are_kept_though_a_later_request_fails(tmp_path):
    with serving(Scripted(faults=["", "", "400"])) as server:
        with pytest.raises(ValueError, match="answers 400 for record r2"):
            client(server.url, tmp_path, concurrency=1).replies(asked(4))
        before = len(server.requests)
        assert len(client(server.url, tmp_path).replies(asked(4))) == 4
        assert len(server.requests) - before == 4 - (before - 1)  # what was answered is not requested again


def test_retry_after_is_obeyed_and_requests_keep_their_pace(tmp_path):
    with serving(Scripted(faults=["429"])) as server:
        client(server.url, tmp_path).replies(asked(1))
    assert server.times[1] - server.times[0] >= 0.95
    with serving(Scripted(faults=["500"])) as server:  # retries are paced, too
        client(server.url, tmp_path / "paced", requests_per_minute=600).replies(asked(4))
    assert server.times[-1] - server.times[0] >= 4 * 0.1 - 0.02


def test_so_many_requests_are_under_way_and_no_more(tmp_path):
    with serving(Scripted(delay=0.2)) as server:
        client(server.url, tmp_path, concurrency=3).replies(asked(9))
    assert server.together == 3


@pytest.mark.parametrize(("limit", "value", "each"), [("tokens", 400, 9), ("money", 500, 12)])
def test_a_budget_is_never_crossed_and_more_of_it_goes_on(limit, value, each, tmp_path):
    """A prompt's bytes bound its tokens, so that a request is sent where there is room for the worst."""
    settings = {"price": PRICE, "concurrency": 2}
    with serving(Scripted()) as server:
        refusal = (
            f"teacher.budget.{limit}={value} has no room for another request.*; their replies are kept in .*sqlite"
        )
        with pytest.raises(ValueError, match=f"{refusal}, so raise it, and the same command goes on from there$"):
            client(server.url, tmp_path, {limit: value}, **settings).replies(asked(60))
        paid = len(server.requests)
        assert 10 < paid * each <= value
        found = client(server.url, tmp_path, {limit: 10**6}, **settings).replies(asked(60))
        assert (len(server.requests), len(found)) == (60, 60)
        with pytest.raises(ValueError, match="has no room"):  # text from disk counts as when it was paid
            client(server.url, tmp_path, {limit: value}, **settings).replies(asked(61))


def test_money_needs_a_price(tmp_path):
    with pytest.raises(ValueError, match=r"teacher.budget.money=1 is a limit on money, but teacher.price is not given"):
        client("http://localhost:1/v1", tmp_path, {"money": 1})


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no", "no JSON: 'no'"),
        ("[1]", "the whole is list, not object"),
        ("{}", "n is missing"),
        ('{"n": true}', "n is bool, not integer"),
        ('{"n": 3}', None),
    ],
)
def test_a_schema_is_checked_whatever_the_server_does(text, reason, tmp_path):
    def reply(body):
        content = {"role": "assistant", "content": text}
        return {"choices": [{"index": 0, "finish_reason": "stop", "message": content}]}

    with serving(Scripted(reply=reply)) as server:
        one = client(server.url, tmp_path)
        if reason is None:
            assert texts(one.replies(asked(1, schema=SCHEMA))) == [text]
        else:
            with pytest.raises(
                ValueError, match=f"never right: response 0 does not follow the schema: {re.escape(reason)}"
            ):
                one.replies(asked(1, schema=SCHEMA))
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_no_file_holds_the_key(tmp_path):
    with serving(Scripted()) as server:
        client(server.url, tmp_path, api_key="sk-not-for-disks").replies(asked(2))
    assert server.keys == ["Bearer sk-not-for-disks"] * 2
    assert all(b"sk-not-for-disks" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    [file] = tmp_path.rglob("*.sqlite")
    assert sqlite3.connect(file).execute("SELECT count(*) FROM replies").fetchone() == (2,)


SENDS = """
import sys
import threading
from pathlib import Path
from tests.teachers.test_endpoint_client import asked, client
print(len(client(sys.argv[1], Path(sys.argv[2]), concurrency=2).replies(asked(20))))
"""


def test_a_process_that_is_killed_and_started_again_pays_nothing_twice(tmp_path):
    """But for the two requests that were under way."""
    words = [sys.executable, "-c", SENDS]
    with serving(Scripted(delay=0.1)) as server:
        process = subprocess.Popen([*words, server.url, str(tmp_path)], cwd=ROOT)
        try:
            while len(server.requests) < 9 and process.poll() is None:
                time.sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        killed = len(server.requests)
        done = subprocess.run([*words, server.url, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (killed, done.stdout) == (9, "20\n") or (9 <= killed < 20 and done.stdout == "20\n"), done.stderr
    assert 20 <= len(server.requests) <= 22
    assert len({str(body) for body in server.requests}) == 20


# ---- the test of a server --------------------------------------------------------------------------------------------


def with_logprobs(scale: float = 1.0, own: float = -0.5) -> Callable[[Body], Body]:
    """Replies with two likeliest tokens, of e^-0.5 and e^-1.5, whose values are multiplied by `scale`."""

    def reply(body: Body) -> Body:
        found = plain(body)
        tops = [{"token": "a", "logprob": -0.5 * scale}, {"token": "b", "logprob": -1.5 * scale}]
        for choice in found["choices"] if body.get("logprobs") else ():
            choice["logprobs"] = {"content": [{"token": "a", "logprob": own * scale, "top_logprobs": tops}]}
        return found

    return reply


def with_text(text: str) -> Callable[[Body], Body]:
    def reply(body: Body) -> Body:
        found = plain(body)
        for choice in found["choices"]:
            choice["message"]["content"] = text
        return found

    return reply


def always_stop(body: Body) -> Body:
    found = plain(body)
    for choice in found["choices"]:
        choice["finish_reason"] = "stop"
    return found


def one_choice(body: Body) -> Body:
    return plain({**body, "n": 1})


LOGPROBS = frozenset({"text", "logprobs", "top_logprobs"})


@pytest.mark.parametrize(
    ("offers", "reply", "sentence"),
    [
        (
            {"text"},
            one_choice,
            "several responses at once .*: 2 responses were requested, and it holds 1 .*together=false",
        ),
        (
            {"text"},
            with_text("red<|im_end|>"),
            "text of .* control token '<.im_end.>', .*; start the server with the model",
        ),
        ({"text"}, always_stop, "text of .*a response of one token counts as finished.*finish_reason is length"),
        ({"text"}, with_text(""), "text of scripted: response 0 is empty"),
        (
            {"text", "logprobs"},
            plain,
            "logprobs of scripted: response 0 has no log-probabilities.*out of teacher.offers",
        ),
        (
            LOGPROBS,
            with_logprobs(1 / math.log(10)),
            "top_logprobs of scripted: .* sum to 1.33, .*no natural logarithms",
        ),
        (
            LOGPROBS,
            with_logprobs(own=-0.9),
            "logprobs of scripted: the token 'a' has -0.9 nats as the chosen one and -0.5",
        ),
        (
            {"text", "structured"},
            plain,
            "structured of scripted: response 0 does not follow the schema: no JSON.*teacher.offers",
        ),
        (
            {"text", "prompt_logprobs"},
            plain,
            "prompt_logprobs of scripted: it has no log-probabilities of the prompt.*or start vLLM",
        ),
        (LOGPROBS, with_logprobs(), None),
        ({"text"}, plain, None),
    ],
)
def test_a_server_that_lacks_what_it_is_to_offer_is_refused(offers, reply, sentence, tmp_path):
    with serving(Scripted(reply=reply)) as server:
        test = SelfTest(client(server.url, tmp_path), Dialect("scripted", offers=frozenset(offers)))
        if sentence is None:
            test.check()
        else:
            with pytest.raises(ValueError, match=f"{server.url} failed the test of {sentence}") as raised:
                test.check()
            assert "\n" not in str(raised.value)
    assert len(server.requests) <= 10


def test_what_requests_under_way_may_cost_is_set_aside():
    """A second request that may cost 6 of 10 tokens waits until the first, which cost 2 of its 6, is answered."""
    purse, most = Purse({"tokens": 10}, {}, "replies.sqlite"), Tokens(4, 2)
    purse.reserve(most)
    second = threading.Thread(target=purse.reserve, args=(most,), daemon=True)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    purse.pay(Tokens(1, 1))
    purse.release(most)
    second.join(10)
    assert not second.is_alive()
    purse.release(most)
    with pytest.raises(ValueError, match=r"teacher\.budget\.tokens=10 has no room"):
        purse.reserve(Tokens(7, 2))
