"""What the models are shown: tables of tokens, chat templates, end tokens.

Run: python -m pytest tests/doctor/test_text.py
"""

import re
from typing import Any

import pytest

from kd.data.sequences import Encoder
from kd.doctor import tokens
from kd.experiment import checks
from kd.experiment.plan import Plan
from kd.experiment.run import work
from kd.models.tokenizers import byte_tokenizer
from kd.runs.folder import RunFolder
from tests.doctor.subjects import END, diagnosis, line, model, node, reader, toy
from tests.runs import Toy
from tests.tiny import record

# --- the table of tokens ---


def cells(table: Any, column: str) -> list[str]:
    [found] = [c for c in table.columns if c.header == column]
    return [str(cell) for cell in found.cells]


def test_the_table_shows_where_each_token_is_learnt():
    """<|user|> h i <|end|> <|assistant|> | o k <|end|>: the response is ids 5, 6, 7, predicted at 4, 5, 6."""
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, None, max_length=99, max_tokens=999)
    [table] = tokens.record_tables(encoder, record(0, "hi", "ok"))
    h, i, o, k = (tokenizer.convert_tokens_to_ids(c) for c in "hiok")
    assert cells(table, "position") == list("01234567")
    assert cells(table, "id") == list(map(str, [259, h, i, END, 260, o, k, END]))
    assert cells(table, "label") == [*map(str, [h, i, END, 260, o, k, END]), ""]
    assert cells(table, "in loss") == ["", "", "", "", "✓", "✓", "✓", ""]
    assert cells(table, "predicted at") == ["", "", "", "", "", "4", "5", "6"]
    assert cells(table, "text")[-3:] == ["'o'", "'k'", "'<|end|>'"]
    assert [row.style for row in table.rows] == [None] * 5 + ["green"] * 3
    assert table.caption is None


def test_each_response_and_each_tokenizer_has_its_table():
    words = byte_tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
    encoder = Encoder(byte_tokenizer(), words, max_length=99, max_tokens=999)
    tables = list(tokens.record_tables(encoder, record(0, "hi", "a", "b")))
    assert [len(table.rows) for table in tables] == [7, 7, 5, 5]  # the teacher's are without <|user|>, <|assistant|>


def test_a_cut_response_and_a_record_that_is_left_out_are_flagged():
    encoder = Encoder(byte_tokenizer(), None, max_length=7, max_tokens=999)
    [cut] = tokens.record_tables(encoder, record(0, "hi", "okay"))
    assert "cut at data.max_length" in str(cut.caption)
    [dropped] = tokens.record_tables(encoder, record(1, "hi there"))
    assert "1 is left out: its prompt alone fills data.max_length=7" in str(dropped)


def test_text_is_visible():
    tokenizer = byte_tokenizer()
    newline, quote, first = tokenizer("\n'é", add_special_tokens=False)["input_ids"][:3]
    assert tokens.visible(newline, tokenizer) == r"'\n'"
    assert tokens.visible(quote, tokenizer) == '''"'"'''
    assert tokens.visible(first, tokenizer) == "<Ã>"  # half a character: the vocabulary's spelling of byte 0xc3
    assert tokens.visible(END, tokenizer) == "'<|end|>'"


# --- templates and end tokens ---

SPEAK = "{% for message in messages %}<|{{ message['role'] }}|>"
DROPS_END = SPEAK + "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"

ENDS_WITH_PAD = {"eos_token": "<|pad|>", "template": byte_tokenizer().chat_template.replace("<|end|>", "<|pad|>")}


def with_template(template: str | None) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_drops_the_end_token_fails():
    finding = checks.round_trip(reader(with_template(DROPS_END)), [record(0, "hi", "ok")])
    assert finding.verdict == "FAIL"
    assert finding.fact.startswith("1 of 1 conversations differ: at position 6 ")  # <|user|> h i <|assistant|> o k
    assert finding.fact.endswith("training reads 257 '<|end|>', the template writes nothing more")
    with toy(student=node("student", template=DROPS_END), teacher=node("teacher")) as cfg:
        code, text = diagnosis(cfg)
    assert code == 1
    assert line(text, "chat template (student)").startswith("FAIL")
    assert line(text, "chat template (teacher)").startswith("PASS")


def test_a_template_that_ends_with_another_token_than_the_tokenizer_is_followed():
    """As of a Base checkpoint: the template of its Instruct sibling, and an end token of its own."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    assert checks.round_trip(reader(tokenizer), [record(0, "hi", "ok")]).verdict == "PASS"
    [row] = reader(tokenizer).encoder.encode(record(0, "hi", "ok"))
    assert row.ids[-1] == END


def test_a_template_that_trims_the_response_is_followed():
    trims = byte_tokenizer().chat_template.replace("message['content']", "message['content'] | trim")
    records = [record(0, "hi", "ok"), record(1, "hi", " ok")]
    assert checks.round_trip(reader(with_template(trims)), records).verdict == "PASS"


def test_a_conversation_that_does_not_begin_as_the_prompt_does_fails():
    """As in models whose generation prompt opens a thought that their conversations lack."""
    opens = byte_tokenizer().chat_template.replace("<|assistant|>{% endif %}", "<|assistant|>Hm{% endif %}")
    finding = checks.round_trip(reader(with_template(opens)), [record(0, "hi", "ok")])
    assert finding.verdict == "FAIL"
    assert finding.fact.startswith("1 of 1 conversations differ: at position 5 training reads 39 'H', the template wri")


def test_a_template_that_leaves_out_a_thought_is_a_warning():
    drops = byte_tokenizer().chat_template.replace("message['content']", "message['content'].split('=>')[-1]")
    records = [record(0, "hi", "well=>ok"), record(1, "hi", "ok")]
    finding = checks.round_trip(reader(with_template(drops)), records)
    assert finding.verdict == "WARN"
    assert finding.fact.startswith("the chat template leaves out a part of 1 responses")


def test_what_follows_the_end_token_is_no_matter():
    more = byte_tokenizer().chat_template.replace("<|end|>", "<|end|>\n")
    assert checks.round_trip(reader(with_template(more)), [record(0, "hi", "ok")]).verdict == "PASS"


def test_without_a_template_there_is_nothing_to_compare():
    assert checks.round_trip(reader(with_template(None)), [record(0)]).verdict == "PASS"


def test_a_teacher_with_another_end_token_fails():
    with toy(student=node("student"), teacher=node("teacher", **ENDS_WITH_PAD)) as cfg:
        code, text = diagnosis(cfg)
    assert code == 1
    found = line(text, "end token")
    assert found.startswith("FAIL")
    assert "student 257 '<|end|>', teacher 256 '<|pad|>'" in found
    assert line(text, "rows").startswith("FAIL")  # the last label of each response is another
    assert re.search(r"eos +257 '<\|end\|>' +256 '<\|pad\|>'", text)


def test_another_end_token_is_a_warning_where_only_text_is_read():
    one, other = model(), model(**ENDS_WITH_PAD)
    assert checks.end_tokens(one, other, compared=True).verdict == "FAIL"
    assert checks.end_tokens(one, other, compared=False).verdict == "WARN"


def test_a_tokenizer_without_end_token_stops_the_examination():
    endless = model(DROPS_END)
    endless.tokenizer.eos_token = None
    assert checks.end_tokens(endless, None, compared=False).verdict == "FAIL"
    endless = node("student", template=DROPS_END, eos_token=None)  # type: ignore[arg-type]
    refused = pytest.raises(ValueError, match="has no end token and its chat template writes none")
    with toy(student=endless, teacher=node("teacher")) as cfg, refused:
        diagnosis(cfg)


def test_generation_settings_that_end_otherwise_are_a_warning():
    one = model()
    one.network.generation_config.eos_token_id = [1, 2]
    finding = checks.end_tokens(one, model(), compared=True)
    assert finding.verdict == "WARN"
    assert "the student's generation settings end with [1, 2]" in finding.fact
    one.network.generation_config.eos_token_id = [1, END]
    assert checks.end_tokens(one, model(), compared=True).verdict == "PASS"


def test_a_run_refuses_what_the_doctor_fails_in_the_same_words(tmp_path):
    """Sequences longer than the model's positions, which nothing else notices."""
    long = {"skill": {"_target_": "tests.doctor.test_text.LongWords"}}
    with toy("data.max_length=2000", "data.max_tokens=2000", f"run.root={tmp_path}", "compare=null", **long) as cfg:
        _, text = diagnosis(cfg)
        sentence = line(text, "positions (student)").removeprefix("FAIL  positions (student)").strip()
        assert sentence.startswith("a sequence of 10")
        with pytest.raises(ValueError, match=r"^positions \(student\): " + re.escape(sentence)):
            work(Plan(cfg, RunFolder(tmp_path / "run")))
        assert not (tmp_path / "run/checkpoints").exists()


class LongWords(Toy):
    """Answers of a thousand letters."""

    def load(self, split):
        return [record(i, "q", "a" * 1000) for i in range(8)]
