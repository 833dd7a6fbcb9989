"""Numbers of the records that stages made, by hand.

Run: python -m pytest tests/augmentation/test_quality.py
"""

from dataclasses import replace

import pytest

from kd.augmentation import quality
from kd.types import Record, Response
from tests.runs import Toy


def with_texts(record: Record, *texts: str) -> Record:
    return replace(record, responses=tuple(Response(text, "teacher") for text in texts))


def test_the_numbers_by_hand() -> None:
    """Four responses, two of them right; of five pairs of words four differ."""
    skill = Toy()
    given = skill.load("train")
    right = [record.responses[0].text for record in given[:2]]
    assert [skill.score(record, text) for record, text in zip(given, right, strict=False)] == [1.0, 1.0]
    records = [with_texts(given[0], right[0], "a b c"), with_texts(given[1], right[1], "a b d e")]
    found = quality.quality(records, given, skill)
    assert (found["score"], found["scored"]) == (0.5, 4)
    assert found["unique"] == 1.0
    assert (
        quality.quality([with_texts(one, "a b c", "a b c", "d") for one in given[:1]], given, skill)["unique"] == 2 / 3
    )
    words = quality.quality([with_texts(given[0], "a b c", "a b d e")], given, skill)
    assert words["distinct_2"] == pytest.approx(4 / 5)  # ab bc, ab bd de


def test_records_that_are_not_the_skills_are_not_scored() -> None:
    """The verifier would compare their responses with another problem's answer."""
    skill = Toy()
    given = skill.load("train")
    new = replace(given[0], id="new", meta={"answer": "x"})
    assert "score" not in quality.quality([new], given, skill)
    both = quality.quality([new, given[1]], given, skill)
    assert (both["score"], both["scored"]) == (1.0, 1)
    assert quality.quality([replace(given[0], responses=())], given, skill) == {}


def test_the_scored_responses_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST", 2)
    skill = Toy()
    given = skill.load("train")[:4]
    wrong = [with_texts(record, "wrong") for record in given]
    for i, expected in ((0, 0.5), (1, 0.0), (2, 0.5), (3, 0.0)):
        found = quality.quality([*wrong[:i], given[i], *wrong[i + 1 :]], given, skill)
        assert (found["score"], found["scored"]) == (expected, 2)
