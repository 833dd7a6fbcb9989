"""A calculator: values, mistakes, and attacks.

Run: python -m pytest tests/environments/test_calculator.py
"""

import tempfile
from pathlib import Path

import pytest

from kd.environments.arithmetic import value_of
from kd.environments.calculator import Calculator
from kd.environments.interface import END, Environment, Observation
from tests.tiny import record

ESCAPE = (  # any class of Python's that holds the builtins
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='catch_warnings'][0]()"
    "._module.__builtins__['open']('{path}','w').write('x')"
)


@pytest.fixture(scope="module")
def calculator() -> Calculator:
    return Calculator(template="{question} Calculate {{so}}.")


def called(calculator: Calculator, expression: str) -> Observation:
    return calculator.step(f"I see. <calculate>{expression}</calculate>")


def test_it_opens_with_the_record_and_its_own_words(calculator):
    assert isinstance(calculator, Environment)
    [message] = calculator.reset(record(0, "What is {x}?"))
    assert message == {"role": "user", "content": "What is {x}? Calculate {so}."}


def test_a_turn_without_a_call_is_the_answer(calculator):
    assert calculator.step("It is 84.") == END == Observation(None)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", "84"),
        (" (2 + 3) * 4 ", "20"),
        ("1/3", "0.333333333333"),
        ("sqrt(2)**2", "2"),
        ("Fraction(1, 3)", "1/3"),
    ],
)
def test_a_call_has_its_value(calculator, expression, value):
    assert called(calculator, expression) == Observation(value)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "error: ZeroDivisionError: division by zero"),
        ("12 *", "error: SyntaxError: invalid syntax"),
        ("[1, 2]", "error: ValueError: the value is no number but of type list"),
        ("2 > 1", "error: ValueError: the value is no number but of type bool"),
        ("10**100", "error: ValueError: the value has 101 characters"),
        ("open('/etc/passwd')", "error: NameError: name 'open' is not defined"),
        ("9**9**9", "error: it was stopped (timeout)"),
        ("[0] * 10**12", "error: MemoryError"),
    ],
)
def test_a_call_without_a_value_has_its_reason(calculator, expression, reason):
    found = called(calculator, expression)
    assert found.text.startswith(reason)
    assert (found.failed, found.malformed) == (True, False)


@pytest.mark.parametrize(
    "turn",
    [
        "<calculate>1 + 1</calculate> <calculate>2 + 2</calculate>",
        "<calculate>1 + 1",
        "<calculate> </calculate>",
        "<calculate><calculate>1</calculate>",
        f"<calculate>{'1+' * 200}1</calculate>",
    ],
)
def test_a_call_that_cannot_be_read_is_malformed(calculator, turn):
    found = calculator.step(turn)
    assert found == Observation("error: write one call, as <calculate>1 + 1</calculate>", malformed=True)


def test_an_expression_that_breaks_out_of_its_names_is_held_by_the_sandbox(calculator):
    with tempfile.TemporaryDirectory(prefix="kd") as folder:
        path = Path(folder, "x")
        expression = ESCAPE.format(path=path)
        assert value_of(expression) == "1"  # else this shows nothing: in an ordinary process it writes the file
        path.unlink()
        assert called(calculator, expression).failed
        assert not path.exists()


def test_a_template_without_the_question_is_refused():
    with pytest.raises(ValueError, match=r"rollout.environment.template has no \{question\}"):
        Calculator(template="Calculate.")
