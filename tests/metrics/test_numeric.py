"""Numeric answers in the sandbox."""

import pytest

from kd.evaluation.items import measured
from kd.evaluation.measured import Measured
from kd.metrics import program_tests
from kd.metrics.numeric import Numeric
from kd.sandbox import AT_LIMIT, NoVerdict
from kd.skills.answer_metrics import Evidence, answer_metrics
from tests.evaluation.conftest import record


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


ENDLESS = "The answer is 10**10**10**10."  # which math-verify would compute


def test_answers_without_a_verdict_are_counted_apart_from_wrong_ones():
    with pytest.raises(NoVerdict) as found:
        Numeric()(ENDLESS, ["1/3"])
    assert found.value.status in AT_LIMIT
    assert Numeric()("The answer is 4.", ["1/3", "4"]) == 1
    [numeric] = answer_metrics(["numeric"])
    one = record("1", "?", "1/3")
    assert numeric.value(Evidence(one, ("The answer is 1/3.", "The answer is 1/2.", ENDLESS))) == (
        pytest.approx(1 / 3),
        1,
    )
    score, rows = measured(numeric, [Evidence(one, (ENDLESS,)), Evidence(one, ("1/3",))], ["a", "b"])
    assert (score.value, rows["value"].tolist(), rows["undecided"].tolist()) == (0.5, [0.0, 1.0], [1, 0])
    assert Measured({}, None, None, [], 0.0, rows).undecided == {"numeric": 1}


def test_a_program_that_does_not_end_has_no_verdict():
    meta = {"signature": 'def f(x):\n    """Return x."""\n', "entry_point": "f", "tests": "assert f(1) == 1"}
    assert program_tests.tests_passed("def f(x):\n    return x", meta) == 1.0
    for wrong in ("def f(x):\n    return 2", "def f(x):\n    exit(0)"):
        assert program_tests.tests_passed(wrong, meta) == 0.0
    with pytest.raises(NoVerdict, match="processor time"):
        program_tests.tests_passed("def f(x):\n    while True: pass", meta)
