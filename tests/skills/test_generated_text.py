"""The generated skills of NLG, and the two tasks of distilling step by step.

Run: python -m pytest tests/skills/test_generated_text.py
"""

import random

import pytest

from kd.skills.__main__ import build, read
from kd.skills.generated.data_to_text import DataToText
from kd.skills.generated.places import NAMES, VALUES, names_of
from kd.skills.generated.simplification import Simplification
from kd.skills.gsm_symbolic import GsmSymbolic
from tests.skills.test_grid import check_splits, check_verifier

SIZES = {"train": 60, "validation": 20, "test": 40}


@pytest.fixture(params=[DataToText, Simplification])
def skill(request):
    return request.param(**SIZES, metrics=["rouge_l"])


def records(skill):
    return [record for split in SIZES for record in skill.load(split)]


def test_references_are_accepted_and_others_are_not(skill):
    check_splits(skill)
    check_verifier(skill, records(skill))
    for record in records(skill):
        references = record.meta["references"]
        assert len(set(references)) == len(references) >= 3
        assert references[0] == record.responses[0].text
        for text in references:
            assert skill.score(record, text) == 1.0, text
            for key, values in VALUES.items():  # one fact replaced by another of its kind
                own = next((value for value in values if value in text), None)
                other = random.Random(text).choice([value for value in values if value != own])
                if own is not None and key != "stars":
                    assert skill.score(record, text.replace(own, other)) < 1.0, (text, own, other)
            assert skill.score(record, text.replace(record.meta["name"], "The place")) < 1.0


def test_no_value_is_part_of_another():
    """Else a right text would be found to state a wrong fact."""
    every = [value.lower() for values in VALUES.values() for value in values]
    assert not [(a, b) for a in every for b in every if a != b and f" {a} " in f" {b} "]
    assert not [(a, b) for a in every for b in NAMES if f" {a} " in f" {b.lower()} "]
    assert sum(len(names_of(split)) for split in SIZES) == len(NAMES)


def test_a_longer_split_begins_with_the_shorter_one_and_another_seed_has_the_same_names(skill):
    kind = type(skill)
    assert kind(**{**SIZES, "train": 30}).load("train") == tuple(record for record in kind(**SIZES).load("train")[:30])
    other = kind(**SIZES, seed=1)
    assert not {record.prompt[0]["content"] for record in other.load("train")} & {
        record.prompt[0]["content"] for record in skill.load("train")
    }
    assert {record.meta["name"] for record in other.load("test")} <= set(names_of("test"))


def test_a_table_is_scored_by_its_facts():
    skill = DataToText(**SIZES)
    record = next(r for r in skill.load("train") if {"area", "stars"} <= r.meta["facts"].keys())
    text, own = record.responses[0].text, record.meta["facts"]
    other = next(value for value in VALUES["area"] if value != own["area"])
    assert skill.score(record, text.replace(own["area"], "place")) == pytest.approx(1 - 1 / len(own))  # one is lacking
    assert skill.score(record, f"{text} It is near the {other}.") == pytest.approx(1 - 1 / len(own))  # one is added
    assert skill.score(record, text.replace(own["area"], other)) == pytest.approx(1 - 2 / len(own))  # both
    rated = "Four stars." if own["stars"] != "four" else "Five stars."
    assert skill.score(record, f"{text} {rated}") == pytest.approx(1 - 1 / len(own))
    assert skill.score(record, f"{text} We waited one hour.") == 1.0  # `one` without stars is no rating
    assert skill.score(record, "") == 0.0


def test_a_sentence_is_simplified_by_easy_words_in_short_sentences():
    skill = Simplification(**SIZES, metrics=["sari"])
    (sari,) = skill.metrics
    for record in skill.load("test"):
        source, text = record.meta["source"], record.responses[0].text
        assert skill.score(record, source) == 0.0
        assert skill.score(record, text.replace(". ", " and ").replace(", ", " ")) == 0.0  # one long sentence
        assert skill.score(record, f"{text} Really {record.meta['avoided'][0]}.") == 0.0
        assert sari.score(record, text) > 45 > sari.score(record, source)


def test_each_problem_has_its_answer_and_its_rationale():
    sizes = {"train": 110, "validation": 10, "test": 10}
    predict, explain = GsmSymbolic(task="predict", **sizes), GsmSymbolic(task="explain", **sizes)
    for one, other in zip(predict.load("train"), explain.load("train"), strict=True):
        assert one.prompt[0]["content"].removeprefix("predict: ") == other.prompt[0]["content"].removeprefix(
            "explain: "
        )
        assert one.responses[0].text == one.meta["answer"] == other.meta["answer"]
        assert other.responses[0].text.endswith(f"The answer is {one.meta['answer']}.")
        assert predict.score(one, one.responses[0].text) == explain.score(other, other.responses[0].text) == 1.0
    sizes = ["validation=20", "test=20", "train=400"]
    mixed = build(read("step_by_step", sizes))
    train = mixed.load("train")
    assert [record.skill for record in train[:4]] == ["gsm_predict", "gsm_explain"] * 2
    problems = [record.prompt[0]["content"].partition(": ")[2] for record in train]
    assert problems[::2] == problems[1::2]
    check_splits(mixed)
    check_verifier(mixed, list(mixed.load("test")))
