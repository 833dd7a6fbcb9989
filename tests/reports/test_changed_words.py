"""What training changed, word by word: by hand.

Run: python -m pytest tests/reports/test_changed_words.py
"""

import json
from pathlib import Path

import pytest

from kd.reports.comparisons.changed_words import as_text, changed_words, marked
from kd.reports.frame import frame_of
from kd.reports.page.content import content
from kd.reports.runs import read_jobs
from kd.reports.sweep import Choices, tables_of
from tests.reports.folders import write_run

ANSWERS = {
    "teacher": "3 + 4 = 7, so the answer is 7.",
    "before": "3 + 4 = 8, I think.",
    "after": "3 + 4 = 7, I think.",
}


def test_words_are_compared_and_white_space_is_not() -> None:
    before, after = changed_words("The  cat sat on a mat.", "The cat lay on a mat")
    assert before == [("The  cat ", False), ("sat ", True), ("on a mat", False), (".", True)]
    assert after == [("The cat ", False), ("lay ", True), ("on a mat", False)]
    assert changed_words("same", "same") == ([("same", False)], [("same", False)])
    assert changed_words("", "a b") == ([], [("a b", True)])


def test_each_answer_is_compared_with_that_of_the_student_before() -> None:
    """Of `before` what `after` no longer has; of the others what `before` lacks."""
    found = marked({name: {"response": text} for name, text in ANSWERS.items()}, 100)
    shown = {name: as_text(pieces, gone=name == "before") for name, pieces in found.items()}
    assert shown["before"] == "3 + 4 = [-8-], I think."
    assert shown["after"] == "3 + 4 = {+7+}, I think."
    assert shown["teacher"] == "3 + 4 = {+7+}, {+so the answer is 7+}."
    assert {name: "".join(text for text, _ in pieces) for name, pieces in found.items()} == ANSWERS


def test_without_the_student_before_nothing_is_marked() -> None:
    found = marked({"after": {"response": "7"}, "teacher": {"response": "8"}}, 100)
    assert found == {"after": [("7", False)], "teacher": [("8", False)]}


def test_texts_are_cut_and_what_moved_beyond_is_no_change() -> None:
    """A word at the start moves all others by one; those that are cut off in one of both texts are in the other."""
    before, after = "a b c d e f", "x a b c d e f"
    found = marked({"before": {"response": before}, "after": {"response": after}}, 6)
    assert found["after"] == [("x ", True), ("a b ", False), ("…", False)]
    assert found["before"] == [("a b c ", False), ("…", False)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = write_run(tmp_path)
    item = {"skill": "sums", "id": "1", "prompt": "3 + 4", "reference": "7", "score": 1.0, "sample": 0}
    folder.write_samples([{**item, "system": name, "response": text} for name, text in ANSWERS.items()])
    folder.finish(folder.results())
    return tmp_path


def test_the_table_marks_them(root: Path) -> None:
    (grid,) = tables_of(frame_of(read_jobs(root)), Choices(tables=["samples"]))
    row = dict(zip(grid.header, grid.rows[0], strict=True))
    assert row["before"] == "3 + 4 = [-8-], I think."
    assert row["after"] == "3 + 4 = {+7+}, I think."
    assert any("[-…-]" in note and "{+…+}" in note for note in grid.notes)


def test_the_page_has_them_as_pieces(root: Path) -> None:
    found = json.loads(json.dumps(content(frame_of(read_jobs(root)), Choices())["details"][0]["answers"]))
    assert found["systems"] == ["teacher", "student before", "student after"]
    assert found["before"] == 1
    pieces = [answer[0] for answer in found["items"][0]["answers"]]
    assert pieces[1:] == [["3 + 4 = ", ["8"], ", I think."], ["3 + 4 = ", ["7"], ", I think."]]
