"""Refusals, by phrases."""

import pytest

from kd.metrics.answers import length, refusal, truncation


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I\u2019m sorry, I cannot assist.", 1),  # the typographic apostrophe
        ("As an AI language model, I ...", 1),
        ("抱歉，我不能帮助你。", 1),
        ("Sure, here is how.", 0),
        ("You cannot divide by zero.", 0),
        ("Step one. " * 30 + "I cannot say more.", 0),  # not at the beginning
        ("", 0),
    ],
)
def test_refusal(text, refuses):
    assert refusal(text) == refuses


def test_length_and_truncation():
    assert (length(7), truncation(True), truncation(False)) == (7, 1, 0)
