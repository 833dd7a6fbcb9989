"""Choices by likelihood, by hand."""

import pytest

from kd.metrics.choice import choice_accuracy, choice_accuracy_length, choice_accuracy_pmi


@pytest.mark.parametrize(("right", "value"), [(0, 0), (1, 1), (2, 0)])
def test_the_most_likely_choice(right, value):
    assert choice_accuracy([-4.0, -3.0, -9.0], right) == value


def test_equal_choices_share():
    assert [choice_accuracy([-1.0, -1.0, -2.0], i) for i in range(3)] == [0.5, 0.5, 0.0]


def test_length_and_prior_turn_the_choice():
    # per character -4 / 10 > -3 / 2; by gain over the prior 5 > 0.5
    assert choice_accuracy_length([-4.0, -3.0], ["a long one", "no"], 0) == 1
    assert choice_accuracy_length([-1.0, -4.0], ["", "word"], 1) == 0.5  # an empty choice counts as one character
    assert choice_accuracy_pmi([-4.0, -3.0], [-9.0, -3.5], 0) == 1
