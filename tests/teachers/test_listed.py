"""Targets from a file and from a server: the likeliest ids of each position, and training on them.

Run: python -m pytest tests/teachers/test_listed.py
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import kd.cache
from kd.alignment.token_bytes import token_bytes
from kd.data.sequences import Encoder
from kd.experiment.loading import load_teacher
from kd.generators.settings import Decoding
from kd.kernels.sparse import EMPTY
from kd.models.tokenizers import byte_tokenizer
from kd.teachers.endpoint.client import Connection
from kd.teachers.endpoint.teacher import Endpoint
from kd.teachers.imported import read_lines
from kd.teachers.listed import Listed, Row, columns_of, placed
from kd.teachers.targets import TopK, stored
from kd.teachers.truncated import Approximated
from kd.teachers.white_box import WhiteBox
from kd.types import Record, Response
from tests import runs
from tests.teachers.servers import Body, Scripted, plain, serving
from tests.teachers.test_endpoint import config
from tests.tiny import records, tiny

TOPK = ["targets=topk", "targets.k=6", "targets.dtype=float32", "targets.audit=null"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_the_likeliest_ids_are_kept_and_the_mass_of_the_others():
    rows = [Row((7, 3, 1), logs(0.1, 0.5, 0.3), 0.9), Row((4,), logs(0.9))]
    found = columns_of(rows, 2, 261)
    assert found["ids"].tolist() == [[3, 1], [4, EMPTY]]
    assert found["logprobs"][0].exp().tolist() == pytest.approx([0.5, 0.3])
    assert found["tail"].exp().tolist() == pytest.approx([0.2, 0.1])  # 1 - .5 - .3, 1 - .9
    read = TopK(k=2).read(stored(found, "float32", 261), 261)
    assert read.ids.tolist() == [[3, 1], [4, EMPTY]]  # also from two bytes without a sign
    assert read.mass().tolist() == pytest.approx([0.8, 0.9])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Row((1, 1), logs(0.5, 0.1)), "position 0 lists 2 ids and 2 log-probabilities; list each id once"),
        (Row((1, 2), logs(0.5)), "position 0 lists 2 ids and 1 log-probabilities"),
        (Row((300,), logs(0.5)), "lists the id 300, but there are 261"),
        (Row((1,), (0.7,)), "has 0.7 for a log-probability; give natural logarithms"),
        (Row((1,), (math.nan,)), "has nan for a log-probability"),
        (Row((1, 2), (-0.1, -0.1)), "probabilities that sum to 1.81; give natural logarithms"),
        (Row((1, 2), logs(0.5, 0.1), 0.9), "sum to 0.6, with a stated mass of 0.9"),
        (Row((), ()), "lists no id"),
    ],
)
def test_numbers_that_are_no_distribution_are_refused(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        columns_of([row], 2, 261)


def test_rows_of_a_server_stand_where_both_tokenizations_have_the_same_bytes():
    """The server cuts "abcd" into ab|c|d, bytes are a|b|c|d: of the first two labels nothing is known."""
    words = byte_tokenizer()
    labels = [*words("abcd", add_special_tokens=False)["input_ids"], words.eos_token_id]
    given = [Row((i,), logs(0.5)) for i in (10, 11, 12)]
    rows, found = placed(labels, [b"ab", b"c", b"d"], given, token_bytes(words))
    assert found == 2
    assert [row.ids for row in rows] == [(labels[0],), (labels[1],), (11,), (12,), (words.eos_token_id,)]
    assert [list(row.logprobs) for row in rows] == [[0.0], [0.0], logs(0.5), logs(0.5), [0.0]]


# ---- from a file -----------------------------------------------------------------------------------------------------


def written(path: Path, teacher: WhiteBox, given: list[Record], *, k: int = 6, end: bool = True) -> None:
    """The file that another program would write: the teacher's likeliest ids at each token of the responses."""
    encoder = Encoder(teacher.tokenizer, None, max_length=512, max_tokens=4096)
    with path.open("w") as file:
        for record in given:
            [batch] = encoder.batches([record])
            logits = teacher.read(batch, frozenset({"logits"})).logits
            kept = TopK(k=k).columns(logits)
            rows = slice(None) if end else slice(-1)
            mass = (-torch.expm1(kept["tail"]))[rows].tolist()
            line = {"id": record.id, "mass": mass, **{n: kept[n][rows].tolist() for n in ("ids", "logprobs")}}
            file.write(json.dumps(line) + "\n")


def test_training_on_a_file_is_training_with_the_teacher_that_wrote_it(tmp_path):
    live = runs.config(*TOPK, "teacher.model.dtype=float32")
    written(tmp_path / "targets.jsonl", load_teacher(live.teacher), runs.Toy().load("train"))
    words = [*TOPK, "teacher=imported", f"teacher.file.address=local:{tmp_path / 'targets.jsonl'}"]
    words = [*words, "teacher.tokenizer=bytes", "objective=fkl"]
    expected = runs.train(live, tmp_path / "live")
    once = runs.train(config(*words, imported=True), tmp_path / "once")
    printed = kd.cache.write(config(*words, imported=True))
    assert "24 sequences (24 new" in printed
    cached = runs.train(config(*words, "targets.cached=true", imported=True), tmp_path / "cached")
    for name, weight in expected.module.student.state_dict().items():
        for other in (once, cached):
            torch.testing.assert_close(other.module.student.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 1: "),
        ('{"id": "a", "ids": [[1]]}', "line 1: logprobs: field required; a line is "),
        (
            '{"id": "a", "ids": [[1], [2]], "logprobs": [[-1]]}',
            "line 1: ids, logprobs, mass and tokens are of different",
        ),
        ('{"id": "a", "ids": [[1]], "logprobs": [[-1]]}\n' * 2, "line 2: record a has this response before; keep one"),
    ],
)
def test_a_line_that_is_none_is_named(text, sentence, tmp_path):
    (tmp_path / "file.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_lines(tmp_path / "file.jsonl")


# ---- from a server ---------------------------------------------------------------------------------------------------


def generated(body: Body) -> Body:
    """The text "ab" as two tokens, with the rivals "x" and "<unknown>" beside each."""
    found = plain(body)
    tops = [{"token": "x", "logprob": math.log(0.2)}, {"token": "unheard of", "logprob": math.log(0.1)}]
    for choice in found["choices"]:
        choice["message"]["content"] = "ab"
        own = [{"token": t, "logprob": math.log(0.6), "bytes": [ord(t)], "top_logprobs": tops} for t in "ab"]
        choice["logprobs"] = {"content": own}
    return found


def endpoint(url: str, **settings: Any) -> Endpoint:
    given = {"served_model": "scripted", "self_test": False, "tokenizer": "bytes", **settings}
    return Endpoint(url=url, connection=Connection(retries=0), **given)


def test_log_probabilities_of_generated_tokens_become_targets():
    words = byte_tokenizer()
    with serving(Scripted(reply=generated)) as server:
        teacher = endpoint(server.url, offers=["text", "top_logprobs"], top=2)
        [record] = records(1)
        [answers] = teacher.respond([record], decoding=Decoding(4, temperature=0.0), engine=None)
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 2)
    labeled = Record(record.id, record.skill, record.prompt, (Response(answers.texts[0], "teacher"),))
    listed, encoder = Listed(teacher, TopK(k=3)), Encoder(words, None, max_length=512, max_tokens=4096)
    [batch] = encoder.batches([labeled])
    logits = listed.output(batch, frozenset({"logits"})).logits
    a, b, x = (words(t, add_special_tokens=False)["input_ids"][0] for t in "abx")
    assert logits.ids.tolist() == [[a, x, EMPTY], [b, x, EMPTY], [words.eos_token_id, EMPTY, EMPTY]]
    # the token that the student's tokenizer lacks is a part of the tail: 1 - .6 - .2
    assert logits.tail.exp().tolist() == pytest.approx([0.2, 0.2, 0.0], abs=1e-6)
    assert listed.take_report()["teacher_listed"] == (2.0, 3.0)
    with pytest.raises(ValueError, match=f"record {record.id}: the server did not generate the response"):
        listed.check([record], [record], [], encoder)


def reader(model: Any) -> Any:
    """The replies of a server with vLLM's prompt_logprobs and a model's numbers."""

    def reading(body: Body) -> Body:
        ids = torch.tensor([body["prompt"]])
        values = model.network(ids).logits[0].float().log_softmax(-1)
        entries: list[Any] = [None]
        for i, own in zip(ids[0, 1:].tolist(), values, strict=False):
            listed = {*own.topk(body["prompt_logprobs"]).indices.tolist(), i}
            entries.append({str(j): {"logprob": own[j].item(), "rank": 1} for j in listed})
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": entries}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids[0]), "completion_tokens": 1}}

    return reading


def test_log_probabilities_of_given_texts_are_the_teachers():
    """A server with vLLM's prompt_logprobs and a model's numbers gives what the model itself gives."""
    model, given = tiny(1), records(3)
    encoder = Encoder(model.tokenizer, None, max_length=512, max_tokens=4096)

    with serving(Scripted(reply=reader(model))) as server:
        teacher = Listed(endpoint(server.url, offers=["prompt_logprobs"], top=5), TopK(k=5))
        whole = Approximated(WhiteBox(model), TopK(k=5))
        for batch in encoder.batches(given):
            ours, theirs = (one.output(batch, frozenset({"logits"})).logits for one in (teacher, whole))
            torch.testing.assert_close(ours.logprobs.exp(), theirs.logprobs.exp().float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.tail, theirs.tail.float(), rtol=1e-3, atol=1e-4)
            assert ours.ids.tolist() == theirs.ids.tolist()
        assert len(server.requests) == 3


def test_a_server_reads_the_next_micro_batches_while_the_student_learns_from_one():
    """In their order, from the moment at which they are known; and a micro-batch that was not announced is read."""
    model, given = tiny(1), records(6)
    encoder = Encoder(model.tokenizer, None, max_length=512, max_tokens=40)
    batches, other = encoder.batches(given[:5]), encoder.batches(given[5:])
    assert len(batches) > 2
    wanted = frozenset({"logits"})
    with serving(Scripted(reply=reader(model))) as server:
        alone = Listed(endpoint(server.url, identity="alone", offers=["prompt_logprobs"], top=5), TopK(k=5))
        expected = [alone.output(batch, wanted).logits for batch in [*batches, *other]]
        before = len(server.requests)
        teacher = Listed(endpoint(server.url, identity="ahead", offers=["prompt_logprobs"], top=5), TopK(k=5))
        teacher.expect(batches)
        _wait(lambda: len(server.requests) == before + 5)  # none was read yet
        for logits, batch in zip(expected, [*batches, *other], strict=True):
            found = teacher.output(batch, wanted).logits
            assert torch.equal(found.ids, logits.ids)
            assert torch.equal(found.logprobs, logits.logprobs)
        assert len(server.requests) == before + 6
    seconds, waited = teacher.take_report()["teacher_wait"]
    assert waited == len(batches) + 1
    assert seconds > 0
    assert teacher.take_report()["teacher_wait"] == (0.0, 0.0)


def test_an_error_of_a_server_that_reads_ahead_is_raised_where_its_numbers_are_needed():
    model = tiny(1)
    encoder = Encoder(model.tokenizer, None, max_length=512, max_tokens=40)
    batches = encoder.batches(records(4))
    with serving(Scripted(reply=lambda body: {"choices": []})) as server:
        teacher = Listed(endpoint(server.url, offers=["prompt_logprobs"], top=5), TopK(k=5))
        teacher.expect(batches)
        for batch in batches:
            with pytest.raises(ValueError, match="never right"):
                teacher.output(batch, frozenset({"logits"}))


def _wait(reached: Any) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_whose_server_reads_ahead_is_the_run_that_waits_for_it(tmp_path, monkeypatch):
    """To the last bit, at the same price, which is what the server was paid; and it reads ahead in each step."""
    model, expected = tiny(1), list[int]()
    words = [*TOPK, "objective=fkl", "teacher.tokenizer=bytes", "teacher.offers=[prompt_logprobs]", "optim.steps=3"]
    words += [
        "teacher.self_test=false",
        "teacher.price={input: 1e6, output: 2e6}",
    ]  # a token costs 1, a generated one 2
    announce = Listed.expect

    def noted(self: Listed, batches: Any) -> None:
        expected.append(len(batches))
        if ahead:
            announce(self, batches)

    monkeypatch.setattr(Listed, "expect", noted)
    found = []
    with serving(Scripted(reply=reader(model))) as server:
        for ahead in (False, True):
            more = [f"teacher.url={server.url}", f"teacher.identity=model{ahead}", "log_every=1"]
            module = runs.train(config(*words, *more), tmp_path / str(ahead)).module
            found.append(module.student.state_dict())
            purse, budget = module.models.teacher.source._purse, module.budget
            # of each sequence: the tokens that are read, its last one, and the one that the server has to generate
            assert budget.money == budget.teacher_tokens + (1 + 2) * purse.requests
            assert budget.money == purse._spent["money"] > 0
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert len(expected) == 6
    assert min(expected) > 1
    assert "train,teacher_wait," in (tmp_path / "True/metrics.csv").read_text()
