import pytest

from kd.metrics.final_number import final_number

CASES = {
    "The answer is 12.": "12",
    "The answer is 12.0": "12.0",
    "The answer is $12.": "12",
    "The answer is $1,200.50.": "1200.50",
    "so the answer is 1,200, since 3 x 400 = 1,200": "1200",
    "The final answer is: **42**\nI checked it 3 times.": "42",
    "Answer: 7": "7",
    "The answer is 3. No, wait. The answer is 5.": "5",  # the last one counts
    "The answer is 5. The answer is obvious.": "5",  # the last one that names a number counts
    "I answered 3 letters and got 12 stamps": "12",  # "answered" announces nothing
    "5 + 7 = 12 apples": "12",
    "He has 7-5": "5",  # an operator, not a sign
    "The answer is -5": "-5",
    "The answer is \u22125.": "-5",  # the typographic minus
    "The answer is -$5.": "-5",
    "The answer is .5": "0.5",
    "1,2": "2",  # a list, not a thousands separator
    "2024,10": "10",
    "no number at all.": None,
    "": None,
}


@pytest.mark.parametrize("text", CASES)
def test_final_number_of(text):
    assert final_number(text) == CASES[text]
