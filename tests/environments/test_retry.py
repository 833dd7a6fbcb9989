"""Another attempt after a wrong answer.

Run: python -m pytest tests/environments/test_retry.py
"""

import math

import pytest

from kd.environments.interface import END, Observation
from kd.environments.retry import Retry
from kd.metrics.table import Metric
from tests.runs import Toy
from tests.tiny import record


class Lettered(Toy):
    """The share of letters; a text with a brace in it breaks the verifier."""

    def score(self, record, text):
        if "{" in text:
            raise ValueError("a brace")
        return sum(letter.isalpha() for letter in text) / max(len(text), 1)


class Endless(Toy):
    metric = Metric("points", high=math.inf)


def test_an_answer_that_is_accepted_ends_the_dialogue():
    environment = Retry(skill=Lettered(), message="Again.", success=0.5)
    asked = record(0, "Which letters?", "ab")
    assert environment.reset(asked) == asked.prompt
    assert environment.step("a1") == END  # one of two
    assert environment.step("a12") == Observation("Again.")


def test_an_answer_on_which_the_verifier_fails_is_wrong():
    environment = Retry(skill=Lettered(), message="Again.", success=0.0)
    environment.reset(record(0, "Which letters?", "ab"))
    assert environment.step("a{") == Observation("Again.", failed=True)


def test_a_metric_without_a_best_value_is_refused():
    with pytest.raises(ValueError, match=r"the metric points of skill toy has no best value"):
        Retry(skill=Endless(), message="Again.")
