"""Evaluation items that share words with training records."""

import pytest

from kd.data.contamination import N, overlapping
from kd.reports.table import run_grid
from kd.types import Record, Response
from tests.test_run_folder import results as stored

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def record(name: str, prompt: str, answer: str = "", system: str = "") -> Record:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return Record(
        id=name, skill="s", prompt=tuple(messages), responses=(Response(answer, "reference"),) if answer else ()
    )


def words(first: int, count: int) -> str:
    return " ".join(LETTERS[first : first + count])


@pytest.mark.parametrize(
    ("train", "item", "found"),
    [
        (words(0, 20), "X " + words(3, N), True),
        (words(0, 20), "X " + words(3, N - 1) + " Y", False),
        (words(0, 20).upper().replace(" ", ", "), "X " + words(3, N), True),  # case and punctuation do not count
        ("Spell: tree", "spell:  Tree", True),  # shorter than N: whole, but for case and spaces
        ("3 + 4 =", "3 - 4 =", False),
        (
            "今日は天気がいいから散歩しましょう",
            "今日は天気がいいから散歩だ",
            False,
        ),  # one character is one word: 12 in a row
        ("今日は天気がいいから散歩しましょう", "今日は天気がいいから散歩しました", True),
        ("Spell: tree", "spell trees", False),
        ("Spell: tree now", "spell tree", False),
    ],
)
def test_overlap(train: str, item: str, found: bool) -> None:
    assert overlapping([record("t", train)], [record("e", item)]) == (["e"] if found else [])


def test_the_reference_counts_and_the_system_prompt_does_not() -> None:
    train = [record("t", "a question of its own", words(0, N))]
    assert overlapping(train, [record("e", "another one", words(0, N))]) == ["e"]
    shared = words(0, 20)
    assert overlapping([record("t", "x", system=shared)], [record("e", "y", system=shared)]) == []


def test_what_many_records_hold_is_a_template() -> None:
    """Unless it is the whole of a short prompt."""
    template = words(0, 15)
    train = [record(str(i), f"{template} {i}") for i in range(11)]
    assert overlapping(train, [record("e", f"{template} 99")]) == []
    assert overlapping(train[:10], [record("e", f"{template} 99")]) == ["e"]
    assert overlapping([record(str(i), "same") for i in range(30)], [record("e", "same")]) == ["e"]


def test_nothing_to_compare() -> None:
    assert overlapping([], [record("e", "x")]) == overlapping([record("t", "x")], []) == []


def test_it_is_named_in_the_table() -> None:
    found = {
        "words": 13,
        "splits": {"validation": {"items": 8, "overlapping": []}, "test": {"items": 9, "overlapping": ["e"]}},
    }
    cost = {"weights_bytes": 8, "cache_bytes_per_token": 4, "flops_per_token": 6, "generated_tokens": 9}
    student = {"parameters": 50, "tokens_per_second": 30.0, **cost}
    teacher = {"parameters": 200, "tokens_per_second": 10.0, **cost}
    notes = run_grid(stored(contamination=found, efficiency={"student": student, "teacher": teacher})).notes
    assert any("0 of 8 validation and 1 of 9 test items share 13 words" in note for note in notes)
    (line,) = [note for note in notes if note.startswith("The student: ")]
    assert "50 parameters (0.25 × the teacher's)" in line
    assert "30 tokens/s (3 × the teacher's)" in line
