"""Numeric answers: in the sandbox, and without it where they are stated plainly."""

import itertools
import random
import re
from fractions import Fraction

import pytest

from kd.components.choices import content
from kd.components.instantiation import instantiate
from kd.evaluation.items import measured
from kd.evaluation.measured import Measured
from kd.metrics import program_tests
from kd.metrics.exact_numbers import exactly_equal
from kd.metrics.numeric import Numeric, math_judge
from kd.sandbox import AT_LIMIT, NoVerdict, calls
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


PROSE = (
    *("", "", "First, 3 + 4 = 7. ", "He has $5 and $6 left, (20%) of it = 3.5; ", "Let x = 12 [see above] ", "no, "),
    *("1/2 of 30 is 15\n", "**Step 1:** 4*5 = 20.\n\n", "2^3 = 8 and -3 < 5 {a} ", "٣ + 4 = ", "50 percent is 0.5\n"),
)
FORMS = (
    *("{n}", "{n}.", "\n {n}\n", "The answer is {n}.", "the answer is: {n}!", "answer: {n}", "{n}/2", "-{n}", "none"),
    *("(3 + 4) #### {n}.", "9 * 2 = $<<9*2=18>>18 every day\n#### {n}", "#### {n} apples", "12 \\boxed{{{n}}}."),
    *("so $\\boxed{{{n}}}$.", "Therefore\n\n$\\boxed{{{f}}}$", "\\boxed{{{f}}}", "The answer is {n} dollars"),
    *("The answer is {n} apples and pears.", "So the answer is: {n} percent of it", "The answer is {n} Pct points"),
    *("The answer is {n} square feet\n", "The answer is {n} over 3.", "The answer is {n} m", "The answer is {n} to 4"),
)


def number(draw: random.Random) -> str:
    """A whole number, decimal, number with separators, or fraction."""
    a, b = draw.randrange(40), draw.randrange(1, 40)
    decimal = f"{a}.{draw.choice(['0', '5', '25', '125', '333333', '000001'])}"
    return draw.choice([str(a), str(-b), decimal, f"{b},{a:03d}", f"{b}/{draw.randrange(1, 12)}", f"-{b}/7"])


def restated(text: str, draw: random.Random) -> str:
    """The same number in another form, or one near it, or another one."""
    value = Fraction(text.replace(",", ""))
    whole = [f"{value.numerator:,}", f"{value.numerator}.00", f"{value.numerator * 2}/2"] * (value.denominator == 1)
    fractions = [f"{value.numerator * 3}/{value.denominator * 3}", f"{float(value):.6f}", f"{float(value):.3f}"]
    return draw.choice([text, text, *(whole or fractions), number(draw)])


def test_a_number_that_is_stated_plainly_has_the_verdict_of_math_verify():
    """Outside of the sandbox, as the texts are ours."""
    draw, judge, verdicts = random.Random(0), math_judge(), list[bool]()
    for prose, form in itertools.product(PROSE, FORMS):
        for _ in range(3):
            answer = number(draw)
            n = restated(answer, draw)
            above, slash, below = n.partition("/")
            text = prose + form.format(n=n, f=rf"\frac{{{above}}}{{{below}}}" if slash and above[0] != "-" else n)
            if (found := exactly_equal(text, answer)) is not None:
                assert judge(answer, text) is found, (text, answer)
                verdicts.append(found)
    assert min(verdicts.count(True), verdicts.count(False)) > 40


def test_answers_with_units_have_the_verdict_of_math_verify():
    """Of each unit in ASDiv, the right answer and another number; none of them requires math-verify."""
    records = instantiate(content("skill", "asdiv")).load("test")
    stated = re.compile(r"The answer is ([\d.]+) (.+)\.")
    units = {match[2]: match[1] for one in records if (match := stated.fullmatch(one.responses[0].text))}
    judge = math_judge()
    assert len(units) > 100
    for unit, number in units.items():
        for answer in (number, f"1{number}"):
            text = f"3 + 4 = 7. The answer is {number} {unit}."
            assert exactly_equal(text, answer) is (answer == number) is judge(answer, text), text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 50 percent.", "50"),
        ("The answer is 5 + x", "5"),
        ("The answer is 5 of 7", "5"),
        ("The answer is 1/3.", "0.333333"),  # equal to six decimals
        ("The final answer is 5. So the answer is 1/2", "1/2"),
        ("My answer: 4. Then the answer is 1/2", "1/2"),
        ("\\boxed{3} and \\boxed{4}", "4"),
        ("\\boxed{50}%", "50"),
        ("#### 5 and more", "5"),
        ("about 7 of them", "7"),
        ("#### 5", "x"),
    ],
)
def test_what_is_in_doubt_is_left_to_math_verify(text, answer):
    assert exactly_equal(text, answer) is None


def test_numbers_that_are_stated_plainly_need_no_sandbox():
    before = calls()
    assert Numeric()("48 / 2 = 24.\n#### 1,024", ["7", "1024"]) == 1
    assert Numeric()("so $\\boxed{\\frac{3}{4}}$.", ["0.75"]) == 1
    assert Numeric()("no idea", ["0.75"]) == 0
    assert Numeric()("5 + 12 = 17. The answer is 17 points.", ["17"]) == 1
    assert calls() == before
    assert Numeric()("about 7 of them", ["7"]) == 1
    assert calls() == before + 1


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
