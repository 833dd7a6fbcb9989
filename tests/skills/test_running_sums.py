"""Sums with their steps: what they add up to, how they are divided, how answers are scored."""

import re

import pytest

from kd.augmentation.labels.rationales import divided
from kd.skills.generated.running_sums import RunningSums, split_of, steps


def skill(task: str = "solve", seed: int = 0, terms: int = 5, **counts: int) -> RunningSums:
    return RunningSums(**{"train": 300, "validation": 40, "test": 40} | counts, task=task, seed=seed, terms=terms)


@pytest.mark.parametrize(
    ("expression", "worked", "total"),
    [
        ("4 + 3", "4 + 3 = 7.", 7),
        ("9 + 9 - 8 + 1", "9 + 9 = 18. 18 - 8 = 10. 10 + 1 = 11.", 11),
        ("2 - 2 + 5", "2 - 2 = 0. 0 + 5 = 5.", 5),
    ],
)
def test_steps_by_hand(expression, worked, total):
    assert steps(expression) == (worked, total)


@pytest.mark.parametrize("terms", [2, 5, 8])
def test_a_response_ends_with_the_value_of_its_sum_and_has_a_step_for_each_sign(terms):
    for record in skill(terms=terms, train=60).load("train"):
        expression, response = record.prompt[0]["content"], record.responses[0].text
        assert re.fullmatch(r"\d( [+-] [1-9])+", expression)
        assert expression.count("+") + expression.count("-") == terms - 1 == response.count("=")
        rationale, answer = divided(response)
        assert int(answer) == eval(expression)
        assert int(rationale.rpartition("= ")[2].rstrip(".")) == eval(expression)
        assert all(0 <= int(total) <= 20 for total in re.findall(r"= (\d+)", response))


def test_both_tasks_are_of_the_same_sums():
    solved, predicted = skill().load("test"), skill("predict").load("test")
    for one, other in zip(solved, predicted, strict=True):
        assert other.prompt[0]["content"] == f"predict: {one.prompt[0]['content']}"
        assert other.responses[0].text == one.meta["answer"] == other.meta["answer"]


def test_no_sum_is_in_two_splits_of_any_seeds_and_a_longer_split_begins_with_the_shorter():
    found: dict[str, set[str]] = {}
    for seed in (0, 1):
        for split in ("train", "validation", "test"):
            of_split = {record.prompt[0]["content"] for record in skill(seed=seed).load(split)}
            assert {split_of(expression) for expression in of_split} == {split}
            found.setdefault(split, set()).update(of_split)
    assert len(found["train"]) > 500  # the second seed draws others
    assert not found["train"] & found["test"]
    assert skill(train=50).load("train") == skill().load("train")[:50]


@pytest.mark.parametrize(
    ("text", "right"),
    [("11", 1.0), ("11.0", 1.0), ("so 10 + 1 = 11. The answer is 11.", 1.0), ("1", 0.0), ("-11", 0.0), ("", 0.0)],
)
def test_a_score_by_hand(text, right):
    sums = skill("predict")
    record = sums._record("9 + 9 - 8 + 1", "train/0")
    assert sums.score(record, text) == right


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"terms": 1}, "skill.terms=1"), ({"train": -1}, "train=-1")],
)
def test_settings_that_make_no_skill_are_refused(settings, names):
    with pytest.raises(ValueError, match=re.escape(names)):
        skill(**settings)


def test_more_sums_than_there_are_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"skill\.test, or raise skill\.terms"):
        skill(terms=2, test=500).load("test")
