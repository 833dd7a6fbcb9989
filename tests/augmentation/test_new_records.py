"""New records: replies as structures, and laws that hold for every stage that makes records.

Run: python -m pytest tests/augmentation/test_new_records.py
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from kd.augmentation.new_records import PARENTS, Ids, NewRecords
from kd.augmentation.replies import blocks, items
from kd.components.choices import content
from tests.augmentation.rules import Rule, configured, record, run
from tests.augmentation.test_expansion import Sums, self_instructing

SMALL: dict[str, dict[str, Any]] = {  # settings of each stage, by its file
    "self_instruct": {"requests": 2, "together": 1, "count": 3},
    "evol_instruct": {"rounds": 2},
    "paraphrase": {},
    "fusion": {},
    "back_translation": {},
    "subgroups": {"groups": 2},
    "topics": {"topics": ["ice"], "subtopics": 2, "questions": 2},
    "ultrachat": {"turns": 2, "least": 1},
    "baize": {"least": 1},
    "textbooks": {"topics": ["ice"], "each": 1, "shortest": 0, "drawn": 0},
    "personas": {"personas": ["a baker"], "each": 2},
    "zerogen": {"each": 2},
    "inpars": {"shortest": 1},
    "oss_instruct": {"part": "prompt"},
    "domain_questions": {},
}
FORMS = {
    "back_translation": "About {}\nScore: 5",
    "baize": "[Human] One?\n[AI] About {}.",
    "oss_instruct": "Problem: About {}.\nSolution: It.",
    "domain_questions": "Question: About {}?\nAnswer: It.",
}
WORDS = ("", "…", "\ud800", "\x00", "{prompt}", "{0!r}", "<|im_end|>", "\u202e\u2028", "1. " * 3000, "é" * 20000)
WORDS += ("Input:\nOutput:", "Score: 9" * 500, "[AI]", "\n" * 5000, "Equal", "yes\n1. a b c d e\n2. f g h i j")
MORE = {"student": Rule(lambda _: "no"), "student_id": "s", "skill": Sums()}
GIVEN = [record(f"r{i}", f"Say {word} {i}.", f"{word}!") for i, word in enumerate(["one", "two", "three", "four"])]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    return tmp_path


def node(name: str) -> dict[str, Any]:
    """The last stage of a file: the only one, or that of the dialogues."""
    return {**list(content("augmentation", name)["stages"].values())[-1], **SMALL[name]}


def stage_of(name: str) -> NewRecords:
    return configured(name, list(content("augmentation", name)["stages"])[-1], **SMALL[name])


def answering(name: str) -> Callable[[str], str]:
    if name == "self_instruct":
        return self_instructing
    form = FORMS.get(name, "1. About {}")
    return lambda text: form.format(f"{len(text)} {text[-20:]}".replace("\n", " "))


# --- replies ---


def test_lists_are_read_with_and_without_marks():
    assert items("Sure!\n1. One\n  more\n2) Two\n\n- Three") == ["One more", "Two", "Three"]
    assert items("One\n\nTwo") == ["One", "Two"]
    assert items("1. One\n2. Tw", finished=False) == ["One"]
    assert items("3.5 is a number") == ["3.5 is a number"]
    assert items("") == items("1.") == []


def test_headings_begin_lines_and_blocks():
    assert blocks("x\n**Class:** yes\nInput: a\nb\nclass: no\ninput: Class: c", "class", "input") == [
        {"class": "yes", "input": "a\nb"},
        {"class": "no", "input": "Class: c"},
    ]
    assert blocks("no heading", "class", "input") == []


def test_ids_are_unlike_all_that_were_there():
    ids = Ids(["a", "a/x1", "a/x3"])
    assert [ids.next("a", "x") for _ in range(3)] == ["a/x2", "a/x4", "a/x5"]


# --- every stage ---


@pytest.mark.parametrize("name", SMALL)
def test_no_reply_raises_and_ids_are_distinct(name):
    """Unicode, empty, huge and malicious texts, in replies and in records."""
    given = [record(f"r{i}", word, word) for i, word in enumerate(word for word in WORDS if word != "\ud800")]
    stage = stage_of(name)
    for first in range(0, len(WORDS), 5):
        words = cycle([*WORDS[first:], *WORDS[:first]])  # each text after others, as a reply of each kind
        made, _ = run(stage, given, lambda _, words=words: next(words), **MORE)
        assert len({one.id for one in made}) == len(made)
        assert all(one.prompt and one.provenance[-1] == stage.name for one in made)
        new = [one for one in made if one.id not in {own.id for own in given}]
        assert all(name == "paraphrase" or PARENTS in one.meta for one in new)


@pytest.mark.parametrize("name", SMALL)
def test_a_second_process_generates_nothing_and_gives_the_same(name):
    first = run(stage_of(name), GIVEN, answering(name), "same", **MORE)
    again = run(stage_of(name), GIVEN, lambda text: pytest.fail(f"generated again: {text}"), "same", **MORE)
    assert first == again
    assert len(first[0]) > 0


@pytest.mark.parametrize("name", SMALL)
def test_the_plan_bounds_what_happens(name):
    stage = stage_of(name)
    made, account = run(stage, GIVEN, answering(name), **MORE)
    plan = type(stage).expected(len(GIVEN), node(name))
    assert 0 < len(made) <= plan.records
    assert 0 < account.prompts <= plan.prompts
