"""A data set of the user's own files: rows, splits, prompts.

Run: python -m pytest tests/skills/test_dataset.py
"""

# ruff: noqa: E501 - a table of sentences

import json
import re
from pathlib import Path

import pytest

from kd.experiment.identity import _records_digest, identity
from kd.experiment.plan import _named
from kd.skills.dataset import Dataset
from kd.skills.records import made
from kd.types import Response
from tests import runs


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count: int) -> list[dict]:
    return [{"question": f"{i**5 + 7919 * i:x} in decimal, {i}?", "answer": str(i)} for i in range(count)]


def test_one_line_makes_a_skill(tmp_path):
    skill = Dataset(jsonl(tmp_path / "sums.jsonl", questions(50)))
    records = [record for split in ("train", "validation", "test") for record in skill.load(split)]
    assert [len(skill.load(split)) for split in ("train", "validation", "test")] == [40, 5, 5]
    assert skill.name == "sums"
    assert {record.skill for record in records} == {"sums"}
    assert {record.id for record in records} == {f"sums/sums.jsonl:{i}" for i in range(1, 51)}
    found = next(record for record in records if record.id == "sums/sums.jsonl:3")
    assert found.prompt == ({"role": "user", "content": f"{2**5 + 7919 * 2:x} in decimal, 2?"},)
    assert found.responses == (Response("2"),)
    assert [skill.score(found, text) for text in ("2", " 2\n", "3")] == [1.0, 1.0, 0.0]


def test_a_smaller_train_is_a_prefix_and_moves_nothing_else(tmp_path):
    path = jsonl(tmp_path / "sums.jsonl", questions(60))
    small, large = (Dataset(path, train=count, validation=5, test=5) for count in (20, 40))
    assert small.load("train") == large.load("train")[:20]
    assert small.load("test") == large.load("test")
    assert len(small.load("test")) == 5


def test_no_group_and_no_near_duplicate_is_in_two_splits(tmp_path):
    rows = [{"question": f"{i} of page {i // 4}", "answer": "a", "page": i // 4} for i in range(80)]
    for seed in range(5):
        skill = Dataset(jsonl(tmp_path / "pages.jsonl", rows), group_key="page", seed=seed)
        pages = [{record.meta["page"] for record in skill.load(split)} for split in ("train", "validation", "test")]
        assert all(pages)
        assert sum(map(len, pages)) == len(set.union(*pages))
    words = [f"{i * 7919 % 1009:04d} {i * 104729 % 9973:05d} {i * 1299709 % 99991:06d}" for i in range(40)]
    near = [{"question": f"What comes after {word}{end}", "answer": "b"} for word in words for end in ("?", " ?", "??")]
    skill = Dataset(jsonl(tmp_path / "near.jsonl", near), columns={"question": "{question}", "answer": "{answer}"})
    kept = [{record.prompt[0]["content"].rstrip(" ?") for record in skill.load(s)} for s in ("train", "test")]
    assert all(kept)
    assert not kept[0] & kept[1]


def test_columns_make_what_is_read_and_what_metrics_read(tmp_path):
    rows = [{"ctx": f"page {i}", "q": "who?", "labels": [f"name {i}", "b"], "right": 1, "n": i} for i in range(30)]
    columns = {
        "question": "{ctx}\n{q}",
        "answer": "{labels[0]}",
        "references": "{labels}",
        "level": "{n}",
    }
    skill = Dataset(jsonl(tmp_path / "a.jsonl", rows), columns=columns, group_key="n", name="mine")
    record = next(r for r in skill.load("train") if r.id == "mine/a.jsonl:8")
    assert record.prompt[0]["content"] == "page 7\nwho?"
    assert record.responses[0].text == "name 7"
    assert record.meta == {"references": ["name 7", "b"], "level": 7, "n": "7"}
    assert skill.score(record, "b") == 1.0


def test_prompts_alone_are_all_for_training(tmp_path):
    path = jsonl(tmp_path / "asked.jsonl", [{"prompt": f"{i**7:x}?"} for i in range(1, 31)])
    skill = Dataset(path)
    assert [len(skill.load(split)) for split in ("train", "validation", "test")] == [30, 0, 0]
    with pytest.raises(ValueError, match=r"is a prompt without a response, .* skill.metrics=exact_match compares"):
        Dataset(path, test=5).load("train")
    assert len(Dataset(path, test=5, metrics="refusal_rate").load("test")) == 5


SENTENCES = {
    "a row that fits nothing": ([{"a": 1}], {}, "/x.jsonl:1 fits no known shape: its columns are a; map its columns"),
    "another shape": (
        [{"prompt": "a", "response": "b"}, {"prompt": "a"}],
        {},
        "/x.jsonl:2 is read as prompt, and /x.jsonl:1 as prompt → response; give it the same columns",
    ),
    "a missing column": (
        [{"q": "a"}, {"p": "a"}],
        {"columns": {"prompt": "{q}"}},
        "/x.jsonl:2 has no q, which skill.columns.prompt reads as {q}; its columns are p; the nearest is p",
    ),
    "a null": (
        [{"q": None}],
        {"columns": {"prompt": "{q}"}},
        "/x.jsonl:1: q is null, which skill.columns.prompt reads; fill it in, or leave the row out",
    ),
    "a short list": (
        [{"q": ["a"]}],
        {"columns": {"prompt": "{q[1]}"}},
        "/x.jsonl:1: {q[1]} of skill.columns.prompt is beyond a list of 1; leave the row out",
    ),
    "a brace": ([], {"columns": {"prompt": "{q"}}, "skill.columns.prompt='{q' is no template (expected '}' before end"),
    "a prompt of no column": (
        [{"prompt": "a", "response": "b"}],
        {"prompt": "{passage}: {prompt}"},
        "/x.jsonl:1 has no passage, which skill.prompt reads as {passage}; its columns are prompt, response",
    ),
    "plain text": ([{"text": "a"}], {}, "/x.jsonl:1 is plain text, without a prompt and a response; give it a prompt"),
    "no group": ([{"prompt": "a", "response": "b"}], {"group_key": "page"}, "/x.jsonl:1 has no page, which skill.group_key"),
    "too few": ([{"prompt": "a", "response": "b"}], {}, "1 records in 1 groups leave 0 for validation; lower a count"),
    "two ids": (
        [{"prompt": "a", "response": "b", "id": 1}] * 2,
        {"test": 0, "validation": 0},
        " has the id x/1 of /x.jsonl:",
    ),
    "no rows": ([], {}, "/x.jsonl has no rows; "),
    "too many": ([{"prompt": "a", "response": "b"}], {"train": 2, "test": 0, "validation": 0}, "fewer than skill.train=2"),
    "demonstrations of none": (
        [{"prompt": "a", "response": "b"}],
        {"few_shot": 2, "test": 0, "validation": 0},
        "skill.few_shot=2 takes its demonstrations from train, which has 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SENTENCES)
def test_what_is_wrong_is_one_sentence_with_file_and_line(what, tmp_path):
    rows, settings, sentence = SENTENCES[what]
    path = jsonl(tmp_path / "x.jsonl", rows)
    with pytest.raises(ValueError, match="; ") as raised:
        Dataset(path, **settings).load("train")
    told = str(raised.value).replace(str(tmp_path), "")
    assert sentence in told
    assert "\n" not in told


def test_splits_are_those_of_the_files(tmp_path):
    one, two, three = (
        jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name} {i**7:x}?", "answer": "a"} for i in range(20)])
        for name in ("train", "dev", "test")
    )
    (tmp_path / "readme.md").write_text("no table")
    named, folder = (
        Dataset({"train": one, "validation": two, "test": three}, name="f"),
        Dataset(str(tmp_path), name="f"),
    )
    for split, file in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert {record.id for record in named.load(split)} == {f"f/{file}.jsonl:{i}" for i in range(1, 21)}
        assert named.load(split) == folder.load(split)
    globbed = Dataset(f"{tmp_path}/t*.jsonl", name="f", validation=3)
    assert [len(globbed.load(split)) for split in ("train", "validation", "test")] == [17, 3, 20]
    assert named.load("test")[:4] == Dataset({"test": three}, name="f", test=4).load("test")
    with pytest.raises(ValueError, match=r"skill.path has the keys testt; they are train, validation and"):
        Dataset({"testt": one}).load("test")
    with pytest.raises(FileNotFoundError, match=r"skill.path=none.jsonl does not exist, seen from"):
        Dataset("none.jsonl").load("test")


def test_prompts_have_a_system_text_demonstrations_and_a_form(tmp_path):
    path = jsonl(tmp_path / "q.jsonl", [{"question": f"{i**7:x}", "answer": f"{i}"} for i in range(20)])
    settings = {"prompt": "Q: {prompt}", "system": "Be brief.", "few_shot": 2, "test": 2, "validation": 0}
    chat, plain = Dataset(path, **settings), Dataset(path, form="plain", **settings)
    bare = Dataset(path, test=2, validation=0)
    first, second, third = bare.load("train")[:3]
    assert [record.id for record in chat.load("train")] == [record.id for record in bare.load("train")[2:]]
    asked = [f"Q: {record.prompt[0]['content']}" for record in (first, second, third)]
    said = [record.responses[0].text for record in (first, second)]
    assert [(m["role"], m["content"]) for m in chat.load("train")[0].prompt] == [
        ("system", "Be brief."),
        ("user", asked[0]),
        ("assistant", said[0]),
        ("user", asked[1]),
        ("assistant", said[1]),
        ("user", asked[2]),
    ]
    text = f"Be brief.\n\n{asked[0]}\n{said[0]}\n\n{asked[1]}\n{said[1]}\n\n{asked[2]}"
    assert plain.load("train")[0].prompt == ({"role": "user", "content": text},)
    assert [m["content"] for m in chat.load("test")[0].prompt][1:5] == [asked[0], said[0], asked[1], said[1]]


def test_a_reader_makes_rows_of_any_file_and_is_allowed_by_name(tmp_path, monkeypatch):
    (tmp_path / "notes.xml").write_text("<q>a</q>\n<q>b</q>\n<q>c</q>")
    where = str(tmp_path / "notes.xml")
    with pytest.raises(ValueError, match=r"skill.reader._target_=.*run.allow="):
        Dataset(where, reader=f"{__name__}.elements")
    monkeypatch.setenv("KD_ALLOW", __name__)
    skill = Dataset(where, reader=f"{__name__}.elements", test=1, validation=1)
    assert {r.prompt[0]["content"] for split in ("train", "test") for r in skill.load(split)} < {"a", "b", "c"}


def elements(path):
    for text in re.findall("<q>(.*)</q>", path.read_text()):
        yield {"question": text, "answer": text}


def test_words_of_a_template_do_not_make_prompts_alike():
    path = Path(__file__).parents[2] / "docs" / "own_data" / "numerals.jsonl"
    skill = Dataset(str(path))
    assert [len(skill.load(split)) for split in ("train", "validation", "test")] == [96, 12, 12]
    assert len({record.meta["near_duplicates"] for record in skill.load("train")}) >= 90


def test_a_run_is_called_after_its_skill(tmp_path):
    """Else all runs of a sweep over skills that are files would have one name."""
    path = jsonl(tmp_path / "my sums.jsonl", questions(30))
    node = {"_target_": "kd.skills.dataset.Dataset", "_convert_": "all", "path": path}
    assert _named(runs.config("objective=sft", skill=node)).name == "my-sums-sft-s1"
    assert _named(runs.config("objective=sft", skill={**node, "name": "sums"})).name == "sums-sft-s1"


def test_an_edited_file_and_another_template_are_other_runs(tmp_path):
    path = jsonl(tmp_path / "sums.jsonl", questions(30))

    def named(**more: str) -> str:
        made.cache_clear()  # as in another process
        _records_digest.cache_clear()
        node = {"_target_": "kd.skills.dataset.Dataset", "_convert_": "all", "path": path, **more}
        return identity(runs.config("objective=sft", skill=node))

    first = named()
    assert named() == first
    assert named(prompt="Solve: {prompt}") != first
    rows = questions(30)
    jsonl(
        tmp_path / "sums.jsonl", [{**row, "answer": "other" if i == 7 else row["answer"]} for i, row in enumerate(rows)]
    )
    assert named() != first
