"""What a skill's records may hold: text, lists of text parts, and nothing that would be read as something else.

Run: python -m pytest tests/skills/test_records.py
"""

import re

import pytest

from kd.skills.records import held, load
from kd.types import Record, Response, Skill
from tests.chats import byte_level

USER = {"role": "user", "content": "Spell abc"}


class Given(Skill):
    """A skill with these records."""

    name, metric, licence, group_key, control_tokens = "given", "accuracy", "CC0-1.0", "id", False

    def __init__(self, *records: Record):
        self.records = records

    def load(self, split: str):
        return self.records

    def score(self, record: Record, text: str) -> float:
        return float(text == record.responses[0].text)


def given(*prompt, answer="cba", **more) -> Record:
    response = Response("")
    object.__setattr__(response, "text", answer)  # whatever a file holds, where types are checked too
    return Record("train/3", "given", prompt, (response,), **more)


def test_text_stays_as_it_is():
    record = given(USER, {"role": "assistant", "content": "  cba "}, USER)
    assert load(Given(record), "train") == [record]


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "Spell "}, {"type": "text", "text": "abc"}]
    [record] = load(Given(given({"role": "user", "content": parts}, answer=[{"type": "text", "text": "cba"}])), "train")
    assert record.prompt == (USER,)
    assert record.responses == (Response("cba"),)


def test_a_tool_call_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "spell", "arguments": "{}"}}]}
    [record] = load(Given(given(USER, call, {"role": "tool", "content": "cba"})), "train")
    assert [message["content"] for message in record.prompt] == ["Spell abc", "", "cba"]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (given(), "record train/3 of given has an empty prompt"),
        (given({"role": "user", "content": None}), "message 0 (user): its content is null"),
        (given(USER, answer=None), "the text of response 0 is null"),
        (given(USER, answer=7), "the text of response 0 is 7"),
        (given({"content": "x"}), 'message 0 is {"content": "x"}, without a role'),
        (
            given(USER, {"role": "user", "content": [{"type": "image", "url": "x"}]}),
            "message 1 (user): its content has a",
        ),
        (given({"role": "user", "content": "ab\ud83d"}), r"its content holds \ud83d at character 2"),
        (given(USER, answer="\udc80"), r"the text of response 0 holds \udc80 at character 0"),
        (given({**USER, "name": "\udfff"}), r"its prompt holds \udfff at character 0"),
    ],
)
def test_what_is_no_text_is_reported_with_record_and_field(record, told):
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        load(Given(record), "train")
    assert str(caught.value).startswith("record train/3 of given")
    assert len(str(caught.value).splitlines()) == 1


def test_control_tokens_are_counted_and_allowed_by_the_skill():
    tokenizer = byte_level()
    skill = Given(
        given(USER), given(USER, answer="<|im_end|> ends"), given({"role": "user", "content": "<|im_start|>"})
    )
    assert held(load(skill, "train"), tokenizer) == (
        "2 of 3 records hold <|im_end|>, <|im_start|> in their texts; encoded: 2 as text"
    )
    assert held(load(Given(given(USER)), "train"), tokenizer) is None
    skill.control_tokens = True
    records = load(skill, "train")
    assert all(record.control_tokens for record in records)
    assert held(records, tokenizer).endswith("encoded: 2 as control tokens")
