"""Responses of others, from a file.

Run: python -m pytest tests/augmentation/test_imported.py
"""

import json

import pytest

from kd.augmentation import Resources
from kd.augmentation.imported import ImportedResponses
from tests.tiny import records


def stage(path, *rows, **settings):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ImportedResponses(file={"address": f"local:{path}"}, **settings)


def test_each_record_has_the_responses_of_its_line(tmp_path, caplog):
    first, second, third = records(3)
    rows = [
        {"id": second.id, "responses": ["zwei", "deux\u2028two"]},
        {"id": first.id, "skill": first.skill, "response": "eins"},
        {"id": "of another set", "response": "x"},
    ]
    resources = Resources(seed=0)
    found = list(stage(tmp_path / "a.jsonl", *rows)([first, second, third], resources))
    assert [[one.text for one in record.responses] for record in found] == [["eins"], ["zwei", "deux\u2028two"]]
    assert {one.source for record in found for one in record.responses} == {"teacher"}
    assert found[0].provenance == (*first.provenance, "imported")
    assert dict(resources.account.dropped) == {"no response in the file": 1}
    assert "1 of 3 lines are for no record here" in caplog.text
    kept = list(stage(tmp_path / "b.jsonl", *rows, otherwise="keep")([first, third], Resources(seed=0)))
    assert kept[1] == third


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"id": "r"}], "line 1: .* is not .*; correct the line"),
        ([{"response": "x"}], "line 1: .* is not "),
        ([{"id": "r", "responses": []}], "line 1: .* is not "),
        ([{"id": "r", "responses": ["x", 3]}], "line 1: .* is not "),
        ([["r", "x"]], "line 1: .* is not "),
        ([{"id": "r", "response": "x"}] * 2, "line 2: record r has a line before; put its responses into one"),
        (
            [{"id": "r", "response": "x"}],
            "lines for 1 records, as 'r', and none for any of the skill's 2; take the ids",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(rows, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        list(stage(tmp_path / "a.jsonl", *rows)(records(2), Resources(seed=0)))
