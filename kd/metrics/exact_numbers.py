"""Numbers that a text states in a form that leaves no doubt, compared without parsing: most answers of a good model.

Each form is one for which math-verify finds the same number and decides the same, which tests/metrics/test_numeric.py
compares on many texts. Everything else is left to math-verify (`kd.metrics.numeric`).
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

_WHOLE = r"-?(?:0|[1-9]\d{0,11})"
_FRACTION = r"-?[1-9]\d{0,5}/[1-9]\d{0,5}"
_NUMBER = rf"(?:-?[1-9]\d{{0,2}}(?:,\d{{3}}){{1,3}}|{_WHOLE}(?:\.\d{{1,6}})?)"
_END = r"[ .!\n]*\Z"
_GOLD = re.compile(rf"(?P<number>{_FRACTION}|{_NUMBER})\Z", re.ASCII)
_STATED = re.compile(rf"[^$\\\[]*?\banswer is:? (?P<number>{_FRACTION}){_END}", re.ASCII | re.DOTALL)
_OF_UNITS = re.compile(  # "the answer is 17 points"; a share of a hundred is another number
    rf"[^$\\\[]*?\banswer is:? (?P<number>{_FRACTION}|{_NUMBER})(?! +(?:[Pp]ercent|[Pp]ct))"
    rf"(?: +[A-Za-z]+(?:-[A-Za-z]+)*){{1,6}}{_END}",
    re.ASCII | re.DOTALL,
)
_AFTER_HASHES = re.compile(rf".*#### (?P<number>{_NUMBER}){_END}", re.ASCII | re.DOTALL)  # as in GSM8K
_BOXED = re.compile(
    r"[^$\\\[\]{}]*(?P<dollar>\$?)\\boxed\{"
    rf"(?:(?P<number>{_FRACTION}|{_WHOLE}(?:\.\d{{1,6}})?)|\\d?frac\{{(?P<above>[1-9]\d{{0,5}})\}}\{{(?P<below>[1-9]\d{{0,5}})\}})"
    rf"\}}(?P=dollar){_END}",
    re.ASCII | re.DOTALL,
)
_NOTHING = re.compile(r"[\d$\\\[]")  # without one of these a text has neither a number nor a formula
CLOSE = Fraction(2, 10**6)  # math-verify rounds decimals to six places


class Exact(NamedTuple):
    """A number, and whether it is stated as a decimal."""

    value: Fraction
    decimal: bool = False


def exactly_equal(text: str, answer: str) -> bool | None:
    """Whether the number that a text arrives at equals the answer; None where only math-verify can decide."""
    right = _found(_GOLD, answer)
    if right is None:
        return None
    if not _NOTHING.search(text):
        return False
    given = stated(text)
    if given is None:
        return None
    if given.value == right.value:
        return True
    close = abs(given.value - right.value) <= CLOSE and (given.decimal or right.decimal)
    return None if close else False


def stated(text: str) -> Exact | None:
    """The number that a text ends with, in one of the forms "the answer is 3/4", "the answer is 17 points",
    "#### 1,200", "\\boxed{3}"."""
    words = text.lower()
    forms: tuple[tuple[bool, Callable[[], Exact | None]], ...] = (
        (words.count("answer") == 1 and "final" not in words, lambda: _found(_STATED, text) or _found(_OF_UNITS, text)),
        ("answer" not in words and "boxed" not in words, lambda: _found(_AFTER_HASHES, text)),
        ("answer" not in words, lambda: _found(_BOXED, text)),
        (True, lambda: _found(_GOLD, text.rstrip(" .!\n"))),
    )
    return next((found for fits, read in forms if fits and (found := read()) is not None), None)


def _found(form: re.Pattern[str], text: str) -> Exact | None:
    match = form.match(text)
    if match is None:
        return None
    groups = match.groupdict()
    if groups.get("above"):
        return Exact(Fraction(int(groups["above"]), int(groups["below"])))
    number = groups["number"].replace(",", "")
    return Exact(Fraction(number), "." in number)
