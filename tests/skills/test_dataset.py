"""A data set of the user's own files: rows, splits, prompts.

Run: python -m pytest tests/skills/test_dataset.py
"""

import json
from pathlib import Path

from kd.skills.dataset import Dataset
from kd.types import Response


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
