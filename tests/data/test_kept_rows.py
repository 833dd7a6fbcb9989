"""Rows are kept over the encoders of a process by all that they depend on, and by nothing less."""

import copy

import pytest

from kd.data.rows import KEPT, Encoded, KeptRows, reading
from kd.data.sequences import Encoder
from kd.models.tokenizers import byte_tokenizer
from kd.types import Record, Response
from tests.tiny import record


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(KEPT, "rows", {})
    monkeypatch.setattr(KEPT, "size", 0)


def encoder(tokenizer=None, *, max_length=64, every_turn=False) -> Encoder:
    return Encoder(tokenizer or byte_tokenizer(), None, max_length=max_length, max_tokens=1000, every_turn=every_turn)


def changed(**attributes):
    tokenizer = byte_tokenizer()
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_an_equal_tokenizer_of_another_run_encodes_no_record_again():
    rows = encoder().encode(record(0, "a", "b"))
    assert rows is not None
    again = encoder(copy.deepcopy(byte_tokenizer())).encode(record(0, "a", "b"))
    assert again is not None
    assert again[0] is rows[0]


@pytest.mark.parametrize(
    "other",
    [
        lambda: encoder(max_length=63),
        lambda: encoder(every_turn=True),
        lambda: encoder(changed(chat_template="{{ messages[0].content }}!")),
        lambda: encoder(changed(eos_token="a")),
        lambda: encoder(changed(split_special_tokens=True)),
        lambda: encoder(changed(pad_token="b")),  # a template may write it
    ],
)
def test_rows_of_another_reading_are_others(other):
    rows = encoder().encode(record(0, "a", "b"))
    assert rows is not None
    theirs = other().encode(record(0, "a", "b"))
    assert theirs is not None
    assert theirs[0] is not rows[0]


def test_rows_of_other_texts_are_others():
    rows = [encoder().encode(one) for one in (record(0, "a", "b"), record(0, "a", "c"), record(0, "ab", "b"))]
    assert len({row[0].ids for row in rows if row}) == 3


def test_control_tokens_that_are_allowed_make_other_rows():
    messages, responses = ({"role": "user", "content": str(byte_tokenizer().eos_token)},), (Response("b"),)
    as_text, as_control = (
        encoder().encode(Record("1", "s", messages, responses, control_tokens=allowed)) for allowed in (False, True)
    )
    assert as_text is not None
    assert as_control is not None
    assert len(as_text[0].ids) > len(as_control[0].ids)


def test_a_record_that_does_not_fit_stays_left_out():
    long = record(0, "a" * 100, "b")
    assert encoder().encode(long) is None
    assert encoder().encode(long) is None
    assert encoder(max_length=1000).encode(long) is not None


def test_a_template_that_writes_the_day_is_rendered_by_each_run():
    dated = changed(chat_template="{{ strftime_now('%d') }}" + str(byte_tokenizer().chat_template))
    assert reading(dated) is None
    rows, again = (encoder(dated).encode(record(0, "a", "b")) for _ in range(2))
    assert rows is not None
    assert again is not None
    assert rows[0] is not again[0]
    assert not KEPT.rows


def test_values_without_a_form_in_json_are_not_kept():
    class Odd:
        def __repr__(self) -> str:
            return "odd"

    message = {"role": "user", "content": "a", "extra": Odd()}
    encoder().encode(Record("1", "s", (message,), (Response("b"),)))
    assert not KEPT.rows


def test_the_oldest_rows_are_dropped_above_the_bound():
    kept = KeptRows(bound=310)  # three rows of one id each take 303, a fourth is too many
    for name in (b"1", b"2", b"3", b"4"):
        kept.keep(name, [Encoded((1,), 0)])
    assert [kept.get(name) is not None for name in (b"1", b"2", b"3", b"4")] == [False, True, True, True]
    kept.keep(b"4", [Encoded((1,), 0)])
    assert kept.size == 303


def test_the_check_of_the_students_tokens_encodes_no_record_again():
    whole = Encoder(byte_tokenizer(), changed(eos_token="a"), max_length=64, max_tokens=1000)
    rows = whole.encode(record(0, "a", "b"))
    KEPT.rows.clear()
    alone = whole.of_student(10**9)
    found = alone.encode(record(0, "a", "b"))
    assert rows is not None
    assert found is not None
    assert found[0].ids == rows[0].ids
    assert found[0].teacher is None
    assert not KEPT.rows  # it was not encoded
