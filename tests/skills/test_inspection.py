"""The report on a skill's records.

Run: python -m pytest tests/skills/test_inspection.py
"""

import json

import pytest

from kd.models.tokenizers import byte_tokenizer, tokenizers_of
from kd.skills.__main__ import main
from kd.skills.dataset import Dataset
from kd.skills.inspection import inspected
from tests.documents import ROOT, blocks, commands

FRENCH = "Le chat est assis sur la table de la cuisine et regarde les oiseaux du jardin."
ENGLISH = "The cat sits on the kitchen table and looks at all the birds in the garden."


def written(path, questions, answer):
    path.write_text("".join(json.dumps({"prompt": text, "completion": answer}) + "\n" for text in questions))
    return str(path)


@pytest.fixture
def leaking(tmp_path):
    train = written(tmp_path / "train.jsonl", ["aaaaa?", "bbbbb?", "bbbbb?", "c" * 30, "say <|end|> twice"], ENGLISH)
    test = written(tmp_path / "test.jsonl", ["bbbbb?", "BBBBB?", "ddddd?"], FRENCH)
    return Dataset({"train": train, "validation": None, "test": test}, name="mine", validation=0)


def numbers(lines, name):
    return [int(part.replace(",", "")) for line in lines if line.startswith(name) for part in line[34:].split()]


def test_what_is_counted(leaking):
    lines = list(inspected(leaking, {"student": byte_tokenizer()}, 40))
    assert numbers(lines, "records") == [5, 0, 3]
    assert numbers(lines, "with one response") == [5, 0, 3]
    assert numbers(lines, "prompts that occur before") == [1, 0, 0]
    assert numbers(lines, "prompts of another split, too") == [2, 0, 1]
    assert numbers(lines, "  the same or nearly") == [2, 0, 2]  # case makes no difference there
    assert "The splits leak: the same prompts are learnt and measured; name skill.group_key." in lines
    assert "language: en 62%, fr 38% of 8 texts of 20 letters or more" in lines
    ids = 3  # <|user|>, <|end|>, <|assistant|>
    assert [line.split()[-3:] for line in lines if line.startswith("  prompt, longest")] == [
        [str(30 + ids), "–", str(6 + ids)]
    ]
    assert [line.split()[-3:] for line in lines if line.startswith("  response, median")] == [
        [str(len(ENGLISH) + 1), "–", str(len(FRENCH) + 1)]
    ]
    assert numbers(lines, "  left out by data.max_length=40") == [0, 0, 0]
    assert numbers(lines, "  truncated by it") == [5, 0, 3]
    text = " ".join(lines)
    assert "control tokens of the student: 1 of 8 records hold <|end|> in their texts; encoded: 1 as text" in text
    assert all(len(line) <= 80 for line in lines)


def test_rows_are_shown_as_the_student_reads_them(leaking):
    lines = list(inspected(leaking, {"student": byte_tokenizer()}, 400))
    at = next(i for i, line in enumerate(lines) if line.startswith("── "))
    asked = leaking.load("train")[0].prompt[0]["content"]
    assert "".join(lines[at + 1 : at + 3]) == f"<|user|>{asked}<|end|><|assistant|>{ENGLISH}<|end|>"


def test_the_page_on_own_data_shows_what_is_printed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (shown,) = blocks(ROOT / "docs" / "own_data" / "README.md", "text")
    (command, *_) = commands(ROOT / "docs" / "own_data" / "README.md")
    main(command.split()[3:])
    printed = capsys.readouterr()
    assert (printed.err + printed.out).startswith(shown)


def test_the_command(tmp_path, capsys):
    path = written(tmp_path / "own.jsonl", [f"{i**9:x}" for i in range(30)], "yes")
    main(["inspect", "dataset", f"path={path}", "--student", "tiny"])
    assert "records                                     24           3           3" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["inspect", "dataset", f"path={path}", "--student", "tinny"])
    with pytest.raises(ValueError, match=r"--teacher own names no model with a tokenizer of its own"):
        tokenizers_of(student=None, teacher="own")
