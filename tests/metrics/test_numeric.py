"""Numeric answers in the sandbox."""

import pytest

from kd.metrics.numeric import Numeric


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("2 + 3 = 5. The answer is 5.", "5", 1),
        ("The answer is $1,200.00.", "1200", 1),
        ("The answer is 12/5.", "12", 0),  # the first number after "answer is" is not the answer
        ("The answer is 1/2.", "0.5", 1),
        ("The answer is 25/3.", "25/3", 1),
        ("The answer is 25/3.", "25", 0),
        ("so \\boxed{\\frac{3}{4}}", "0.75", 1),
        ("It is $x^2 + 2x + 1$", "(x+1)^2", 1),
        ("-3", "3", 0),
        ("seven", "7", 0),
        ("", "7", 0),
        ("答案是 42", "42", 1),
        ("The answer is 10**10**10**10.", "1", 0),  # it is not computed
    ],
)
def test_numeric(text, answer, right):
    assert Numeric()(text, [answer]) == right


def test_any_of_the_answers():
    assert Numeric()("The answer is 4", ["3", "4"]) == 1


def test_what_a_text_evaluates_reaches_no_file(tmp_path):
    path = tmp_path / "made"
    assert Numeric()(f"The answer is $open('{path}', 'w')$ or open('{path}','w')", ["1"]) == 0
    assert not path.exists()
