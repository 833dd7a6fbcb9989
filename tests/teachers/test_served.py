"""A teacher in another process: the same numbers as in this one, ahead of the student, and what may go wrong.

Run: python -m pytest tests/teachers/test_served.py
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import kd.cache
from kd import serve
from kd.composition.check import check
from kd.data.rows import collate
from kd.data.sequences import Encoder
from kd.doctor.subject import composed
from kd.experiment.identity import identity
from kd.experiment.loading import load_teacher
from kd.experiment.preparation import prepared
from kd.experiment.run import train_only
from kd.models.language_model import OF_ROWS
from kd.teachers.served.client import Connection
from kd.teachers.served.teacher import Served
from kd.teachers.served.wire import Reading, name_of, packed, request_of, sequences_of
from kd.teachers.white_box import WhiteBox
from kd.types import Batch
from tests import runs
from tests.teachers import served
from tests.tiny import FAMILIES, records, tiny

LOGITS = frozenset({"logits"})
SERVED = ["log_every=1", "optim.steps=6"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def server() -> Iterator[served.Process]:
    """In float32."""
    with served.process() as process:
        yield process


def batches(model: Any, count: int = 6, longest: int = 60) -> list[Any]:
    encoder = Encoder(model.tokenizer, None, max_length=512, max_tokens=longest)
    encoder.max_padding = 1.0
    return encoder.batches(records(count))


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_outputs_are_those_of_the_model_in_this_process(family, dtype):
    """To the last bit: bias, scale and soft cap of the head included."""
    model = tiny(1, family=family, dtype=dtype)
    local = WhiteBox(model)
    with served.serving(model) as (teacher, _):
        for batch in batches(model):
            with torch.no_grad():
                ours, theirs = (one.output(batch, OF_ROWS) for one in (teacher, local))
            every = slice(0, theirs.logits.n)
            assert torch.equal(ours.logits.rows(every), theirs.logits.rows(every))
            assert ours.logits.rows(every).dtype == theirs.logits.rows(every).dtype
            assert torch.equal(ours.logprobs, theirs.logprobs)
            assert torch.equal(ours.mean_logprobs, theirs.mean_logprobs)
        assert teacher.vocabulary == model.vocabulary
        assert teacher.reads_packed() == model.packs
        assert teacher.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        assert teacher.tokenizer.chat_template == model.tokenizer.chat_template


def test_the_server_computes_in_the_precision_of_the_run():
    model = tiny(1, dtype="float32")
    [batch] = batches(model, 2, longest=4096)
    without = WhiteBox(model).output(batch, LOGITS).logits.hidden
    with served.serving(model) as (teacher, _), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = WhiteBox(model).output(batch, LOGITS).logits.hidden
        teacher.expect([batch])  # a thread, in which autocast is off
        found = teacher.output(batch, LOGITS).logits.hidden
        assert torch.equal(found, expected)
        assert not torch.equal(found, without)


def test_states_may_be_sent_in_half_the_bytes():
    model = tiny(1, dtype="float32")
    [batch] = batches(model, 2, longest=4096)
    with served.serving(model) as (teacher, _), torch.no_grad():
        half = served.teacher(teacher.url, teacher.name, dtype="bfloat16").output(batch, LOGITS).logits.hidden
        whole = teacher.output(batch, LOGITS).logits.hidden
    assert torch.equal(half, whole.bfloat16())


def test_padding_on_the_left_and_rows_without_a_label_are_read():
    model = tiny(1)
    encoder = Encoder(model.tokenizer, None, max_length=512, max_tokens=4096)
    rows = [row for record in records(3) for row in encoder.encode(record) or ()]
    left = collate(rows, 0, padding_side="left")
    with served.serving(model) as (teacher, _), torch.no_grad():
        for silent in (0, 1, 3):
            left = replace(left, mask=left.mask & (torch.arange(3) >= silent)[:, None])
            ours, theirs = (one.output(Batch(left, left), OF_ROWS) for one in (teacher, WhiteBox(model)))
            assert torch.equal(ours.logprobs, theirs.logprobs)
            assert ours.logits.n == left.mask.sum()


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        (["objective=fkl"], {}),
        (["objective=rkl"], {}),
        (["objective=jsd"], {}),
        (["objective=[fkl,sft]"], {}),
        (["objective=fkl", "targets=topk", "targets.k=5"], {}),
        pytest.param(["objective=opd", "rollout=on_policy", "rollout.max_new_tokens=8"], {}, marks=pytest.mark.long),
        pytest.param(["objective=rkl", "rollout=on_policy", "rollout.max_new_tokens=8"], {}, marks=pytest.mark.long),
        pytest.param(["objective=fkl", "trainer=cpu_bf16"], {}, marks=pytest.mark.long),
        pytest.param(["objective=fkl", "optim.window=12", "data.max_tokens=64"], {}, marks=pytest.mark.long),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_run_with_a_served_teacher_is_the_run_with_a_local_one(server, tmp_path, words, nodes):
    """Weights, losses, validation, budget and optimizer, bit for bit; and the wait is logged."""
    for name, teacher in (("local", {}), ("served", {"teacher": server.node()})):
        runs.train(runs.config(*SERVED, *words, **teacher, **nodes), tmp_path / name)
    assert runs.differences(tmp_path / "local", tmp_path / "served") == []
    tokens = [runs.checkpoint(tmp_path / n)["distillation"]["budget"]["teacher_tokens"] for n in ("local", "served")]
    assert tokens[0] == tokens[1] > 0
    assert "train,teacher_wait," in (tmp_path / "served/metrics.csv").read_text()


def test_targets_of_a_served_teacher_are_cached_and_read_without_a_server(server, tmp_path):
    """The head is among them; the weights are those of the run with the targets of a local teacher."""
    words, gone = ["objective=fkl", "targets=hidden", *SERVED], served.node("http://127.0.0.1:9", server.identity)
    for name, live, later in (("local", {}, {}), ("served", {"teacher": server.node()}, {"teacher": gone})):
        kd.cache.write(runs.config(*words, **live))
        runs.train(runs.config(*words, "targets.cached=true", **later), tmp_path / name)
    assert runs.differences(tmp_path / "local", tmp_path / "served") == []


@pytest.mark.long
def test_two_ranks_read_one_server_in_float64(tmp_path):
    """As two ranks with a copy of the teacher each."""
    words = ["trainer=ddp_cpu", *runs.EXACT, "objective=fkl", *SERVED]
    with served.process("teacher.model.dtype=float64") as process:
        local = runs.job(tmp_path / "local", *words)
        there = runs.job(tmp_path / "served", *words, teacher=process.node())
        done = [runs.in_processes(job) for job in (local, there)]
    assert [one.returncode for one in done] == [0, 0], done[-1].stderr[-3000:]
    assert runs.differences(tmp_path / "local", tmp_path / "served") == []


# ---- ahead -----------------------------------------------------------------------------------------------------------


def test_requests_are_sent_ahead_in_order_and_not_without_bound():
    """Three replies at most wait, whichever is used first; an unannounced micro-batch is read, too."""
    model = tiny(1)
    given = batches(model, 12, longest=40)
    assert len(given) >= 8
    with served.serving(model) as (found, server), torch.no_grad():
        teacher, local = served.teacher(found.url, found.name, at_once=2, held=3), WhiteBox(model)
        expected = [local.output(batch, LOGITS).logits.hidden for batch in given]  # before threads read with the model
        teacher.expect(given)
        wait_for(lambda: server.requests == 3)
        time.sleep(0.2)
        assert server.requests == 3  # none was used yet
        for i in (5, *range(5), *range(6, len(given)), 0):
            assert torch.equal(teacher.output(given[i], LOGITS).logits.hidden, expected[i])
        assert server.requests == len(given) + 1
        teacher.expect(given)
        teacher.output(given[0], LOGITS)
        teacher.expect(given[:1])  # the step before was left early
        assert torch.equal(teacher.output(given[0], LOGITS).logits.hidden, expected[0])


def test_the_wait_is_what_the_student_does_not_hide():
    """Of eight micro-batches at 0.1 s on the server, beside 0.15 s of the student's each, the first is waited for."""
    model = tiny(1)
    given = batches(model, 12, longest=40)[:8]

    def slow(reply: bytes) -> bytes:
        time.sleep(0.1)
        return reply

    def seconds(announced: bool) -> float:
        teacher = served.teacher(found.url, found.name, at_once=1)
        assert teacher.about.width == 32
        if announced:
            teacher.expect(given)
        for batch in given:
            teacher.output(batch, LOGITS)
            time.sleep(0.15)
        waited, count = teacher.take_report()["teacher_wait"]
        assert count == 8
        return waited

    with served.serving(model, slow) as (found, _), torch.no_grad():
        assert seconds(announced=False) > 0.8
        assert 0.1 < seconds(announced=True) < 0.4


def wait_for(reached: Any) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- which teacher ---------------------------------------------------------------------------------------------------


def test_the_hash_of_a_run_has_the_teacher_and_not_the_way_to_it():
    def hashed(url: str = "http://127.0.0.1:1", name: str = "a" * 16, dtype: str | None = None, held: int = 2) -> str:
        return identity(runs.config(teacher=served.node(url, name, dtype, held=held)))

    assert hashed() == hashed(url="http://elsewhere:2", held=3)
    assert len({hashed(), hashed(name="b" * 16), hashed(dtype="bfloat16")}) == 3


def test_another_teacher_or_tokenizer_than_the_configs_is_refused_before_training(server, tmp_path):
    """Other weights, and the same weights under another chat template."""
    for name, change in (("weights", lambda model: model.head().weight.mul_(1.5)), ("template", _no_template)):
        model = tiny(1)
        with served.serving(model) as (teacher, _):
            known = teacher.name
            assert teacher.tokenizer is not None
        with torch.no_grad():
            change(model)
        refused = pytest.raises(ValueError, match=f"serves the teacher [0-9a-f]+, but teacher.identity={known}; ")
        with served.serving(model) as (teacher, _), refused:
            runs.train(runs.config("objective=fkl", teacher=served.node(teacher.url, known)), tmp_path / name)
        assert teacher.name != known
    with pytest.raises(ValueError, match="serves the teacher"):
        runs.train(runs.config("objective=fkl", teacher=served.node(server.url, "0" * 16)), tmp_path / "third")


def _no_template(model: Any) -> None:
    model.tokenizer.chat_template = "{{ messages }}"


def test_what_a_server_does_not_send_is_refused_when_the_config_is_composed():
    for word, lack in (("hidden_mse", "native_teacher_hidden|teacher_hidden"), ("attention_kl", "teacher_attentions")):
        with pytest.raises(ValueError, match=f"{word} needs .*({lack}).*, but teacher Served provides"):
            check(runs.config(f"objective={word}", teacher=served.node("http://127.0.0.1:1", "a" * 16)))
    with pytest.raises(ValueError, match="but teacher Served provides logits, logprobs, mean_logprobs"):
        check(runs.config("objective=sft", "rollout=teacher", teacher=served.node("http://127.0.0.1:1", "a" * 16)))


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_an_address_that_is_not_free_is_named_before_a_model_is_prepared(port, capsys, monkeypatch):
    monkeypatch.setattr(serve, "loaded", lambda cfg: pytest.fail("a teacher was prepared"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1] if port == "taken" else int(port)
        assert serve.main([f"--port={number}", "teacher=tiny", "trainer=cpu", "skill=spell_backward"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"no server can listen at 127.0.0.1:{number} (")
    assert said.endswith("or --port 0 for any that is free")


def test_an_ensemble_and_a_server_are_not_served(capsys):
    for words in (["teacher=ensemble"], ["teacher=own"]):
        assert serve.main(["--port=0", "trainer=cpu", *words, *_unprepared(words)]) == 1
        assert "serve teacher=pretrained" in capsys.readouterr().err


def _unprepared(words: list[str]) -> list[str]:
    members = ["teacher.members.first.prepare=null", "teacher.members.second.prepare=null"]
    return members if "teacher=ensemble" in words else []


# ---- faults ----------------------------------------------------------------------------------------------------------


def changed(**tensors: Any) -> Any:
    """A server that sends other tensors."""
    return lambda reply: save({**load(reply), **tensors})


def first_row(value: float) -> Any:
    def change(reply: bytes) -> bytes:
        states = load(reply)["hidden"].clone()
        states[0, 0] = value
        return save({"hidden": states})

    return change


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda reply: b"<html>", "6 bytes that are no tensors"),
        (lambda reply: reply[:-8], "that are no tensors"),
        (lambda reply: save({"states": torch.zeros(2)}), "the tensors states in place of hidden"),
        (changed(hidden=torch.zeros(3, 32)), r"states of shape \[3, 32\] in place of \[\d+, 32\]"),
        (first_row(float("nan")), "states that are not finite"),
        (first_row(float("inf")), "states that are not finite"),
        (lambda reply: save({"hidden": load(reply)["hidden"].to(torch.int32)}), "states of torch.int32 in place of"),
        (
            lambda reply: save({"hidden": load(reply)["hidden"].half()}),
            "states of torch.float16 in place of torch.float32",
        ),
    ],
    ids=["html", "cut", "name", "shape", "nan", "inf", "integers", "dtype"],
)
def test_a_reply_that_is_not_what_was_requested_is_one_sentence(wrong, sentence):
    model = tiny(1, dtype="float32")
    [batch] = batches(model, 2, longest=4096)
    with served.serving(model, wrong) as (found, _):
        teacher = served.teacher(found.url, found.name, dtype="float32")
        with pytest.raises(
            ValueError, match=f"http://127.0.0.1:.* returned {'' if sentence[0] == 's' else '.*'}{sentence}"
        ):
            teacher.output(batch, LOGITS)
        teacher.expect([batch])
        with pytest.raises(ValueError, match="for a micro-batch of 2 sequences; start it again, from the same kd"):
            teacher.output(batch, LOGITS)


def test_a_model_that_fails_on_the_server_is_named():
    model = tiny(1)
    [batch] = batches(model, 2, longest=4096)

    def full(reply: bytes) -> bytes:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        served.serving(model, full) as (teacher, _),
        pytest.raises(
            ValueError, match=r"answers 500: memory is used up: CUDA out of memory.*; lower data\.max_tokens"
        ),
    ):
        teacher.output(batch, LOGITS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": torch.zeros(1, 2)}, "not of the types"),
        ({"tokens": torch.zeros(2, 2, dtype=torch.int32)}, r"tokens \[2, 2\], mask \[1, 2\]"),
        ({"tokens": torch.tensor([[5, 300]], dtype=torch.int32)}, "an id that is none of the teacher's 261"),
        ({"lengths": torch.tensor([3], dtype=torch.int32)}, "a length that is none of its row"),
        ({"lengths": torch.tensor([1], dtype=torch.int32)}, "a label where there is padding"),
        ({"more": torch.zeros(1)}, "the tensors lengths, mask, more, tokens in place of"),
    ],
)
def test_a_request_that_is_none_is_refused_by_the_server(change, sentence):
    right = {"tokens": torch.tensor([[5, 6]], dtype=torch.int32), "mask": torch.tensor([[False, True]])}
    right["lengths"] = torch.tensor([2], dtype=torch.int32)
    assert sequences_of(packed(right), "right", 261).tokens.tolist() == [[5, 6]]
    with pytest.raises(ValueError, match=sentence):
        sequences_of(packed({**right, **change}), "right", 261)
    with served.serving(tiny(1)) as (teacher, _), pytest.raises(ValueError, match=f"answers 400: .*{sentence}"):
        teacher.client.states(Reading().query(), packed({**right, **change}))
    with pytest.raises(ValueError, match="autocast='int8' is no setting"):
        Reading.of("autocast=int8")


def _scripted(reply: bytes | None) -> tuple[socket.socket, str]:
    """A listener that sends `reply` to each request and breaks off, or nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        kept = []
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            connection.recv(1 << 16)
            if reply is None:
                kept.append(connection)
                continue
            connection.sendall(reply)
            connection.close()

    threading.Thread(target=answer, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("reply", "kind", "sentence"),
    [
        (None, TimeoutError, "was silent for teacher.connection.timeout=0.3 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", ConnectionError, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ValueError, "is no server of a teacher"),
        (b"SSH-2.0-OpenSSH\r\n", ConnectionError, "broke off"),
        (b"", ConnectionError, "broke off"),
        (b"HTTP/1.1 404 no\r\nContent-Length: 4\r\n\r\nnone", ValueError, "answers 404: none; correct teacher.url"),
    ],
    ids=["silent", "cut", "another", "no http", "closed", "404"],
)
def test_a_server_that_is_none_ends_in_one_sentence(reply, kind, sentence):
    listener, url = _scripted(reply)
    started = time.monotonic()
    with listener, pytest.raises(kind, match=sentence):
        _ = served.teacher(url, "a" * 16, timeout=0.3, patience=0.3).about
    assert time.monotonic() - started < 10


def test_no_server_is_one_sentence_before_any_weight_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        ConnectionError, match=rf"no server answers at {url}, for teacher.connection.patience=0.2 s; start"
    ):
        runs.train(runs.config("objective=fkl", teacher=served.node(url, "a" * 16, patience=0.2)), tmp_path)
    with pytest.raises(ValueError, match=r"teacher\.url=localhost:80 is no address of a server"):
        Served(url="localhost:80", identity="a" * 16, connection=Connection())


def test_images_are_not_sent():
    model = tiny(1)
    [batch] = batches(model, 1)
    with pytest.raises(ValueError, match="teacher=served sends no images"):
        request_of(replace(batch.teacher, pixels=({"pixel_values": torch.zeros(1)},)))


@pytest.mark.long
@pytest.mark.parametrize("same", [True, False])
def test_a_server_that_is_killed_and_started_again(same, server, tmp_path, monkeypatch):
    """In the middle of the run, which has the weights of one whose server stayed; another teacher is refused."""
    words, steps, expect = ["objective=fkl", *SERVED], list[int](), Served.expect
    runs.train(runs.config(*words, teacher=server.node()), tmp_path / "whole")
    first, later = served.Process(), list[Any]()

    def restart() -> None:
        later.append(served.Process(*([] if same else ["teacher.model.dtype=bfloat16"]), port=first.port))

    def killing(teacher: Served, given: Any) -> None:
        steps.append(len(given))
        expect(teacher, given)
        if len(steps) == 3:
            first.end()
            threading.Thread(target=restart).start()

    monkeypatch.setattr(Served, "expect", killing)
    run = runs.config(*words, teacher=first.node())
    try:
        if same:
            runs.train(run, tmp_path / "again")
            assert runs.differences(tmp_path / "whole", tmp_path / "again") == []
        else:
            with pytest.raises(
                ValueError, match=f"serves the teacher [0-9a-f]+, but teacher.identity={first.identity}"
            ):
                runs.train(run, tmp_path / "again")
    finally:
        wait_for(lambda: later)
        later[0].end()


@pytest.mark.long
def test_a_prepared_teacher_is_served_and_read_by_the_words_that_the_server_prints(tmp_path):
    """The server prepares it, once for all; a run by the command line has results."""
    words = ["teacher=tiny", "teacher.prepare.steps=3", "teacher.model.architecture.hidden_size=32"]
    words += ["skill=spell_backward", "trainer=cpu"]
    with served.process(teacher=words) as process:
        with composed(["student=tiny", *words]) as cfg:
            assert process.identity == name_of(load_teacher(prepared(cfg, train_only).teacher).identity())
        command = [sys.executable, "run.py", *process.words, "student=tiny", "skill=spell_backward", "trainer=cpu"]
        command += [
            "optim.steps=2",
            "objective=jsd",
            "compare=null",
            "evaluation=quick",
            f"run.root={tmp_path / 'out'}",
        ]
        done = subprocess.run(command, cwd=served.ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "its own answers are not evaluated" in " ".join(done.stdout.split())
    [results] = (tmp_path / "out").rglob("results.json")
    found = json.loads(results.read_text())
    assert found["budget"]["teacher_tokens"] > 0
    assert found["scores"]["spell_backward"]["bits_per_byte"].get("teacher") is None
    assert found["scores"]["spell_backward"]["bits_per_byte"]["after"]["value"] > 0
