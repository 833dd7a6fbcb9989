"""The answer of a solution as a number or formula, compared with the right one by the package math-verify."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from kd.metrics.exact_numbers import exactly_equal
from kd.metrics.final_number import ANSWER, NUMBER, final_number
from kd.sandbox import AT_LIMIT, NoVerdict, mechanism, verdict

_ALONE = re.compile(rf"[\s*:=$]*(?:{NUMBER.pattern})[\s.*!]*")


class Numeric:
    """1 if the last answer of a text equals one of `answers` as a number, fraction or formula, else 0.

    Where both are plain decimals ("The answer is $1,200."), they are compared as such, and so are numbers in the usual
    forms (`kd.metrics.exact_numbers`); all else ("about 1/2 of it", `\\boxed{x^2}`) by math-verify, to six decimals,
    in a sandbox (docs/sandbox.md): it evaluates what a model has written. A text on which it raises has no answer; one
    on which it reaches a limit of the sandbox has no verdict.

    Raises:
        ValueError: no sandbox works on this machine.
    """

    def __init__(self) -> None:
        mechanism()

    def __call__(self, text: str, answers: Sequence[str]) -> float:
        """1 or 0. Raises NoVerdict where no answer is found equal and a comparison reached a limit of the sandbox."""
        lost: NoVerdict | None = None
        decided = {answer: _plainly_equal(text, answer) for answer in answers}
        if any(decided.values()):
            return 1.0
        for answer in (one for one, equal in decided.items() if equal is None):
            try:
                if _equal(text, answer):
                    return 1.0
            except NoVerdict as error:
                lost = error
        if lost is not None:
            raise lost
        return 0.0


def _plainly_equal(text: str, answer: str) -> bool | None:
    """Whether they are the same number; None where that takes math-verify."""
    number, right = _plain(text), _plain(answer)
    if number is not None and right is not None:
        return Decimal(number) == Decimal(right)
    return exactly_equal(text, answer)


def _equal(text: str, answer: str) -> bool:
    try:
        return verdict(math_judge, (answer, text), setup=()) is True
    except NoVerdict as error:
        if error.status in AT_LIMIT:
            raise
        return False


def _plain(text: str) -> str | None:
    """The final number of a text where nothing but that number follows "the answer is", or nothing else is there."""
    phrases = list(ANSWER.finditer(text))
    rest = text[phrases[-1].end() :] if phrases else text
    return final_number(rest) if _ALONE.fullmatch(rest) else None


def math_judge() -> Callable[[str, str], bool]:
    """(answer, text) -> whether math-verify finds the answer in the text; for the sandbox, which has its limits."""
    from math_verify import parse, verify  # 0.4 s

    def equal(answer: str, text: str) -> bool:
        # a bare formula is parsed between dollars alone
        right = parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None)
        given = parse(text.rstrip(" .!\n"), parsing_timeout=None)  # "25/3." is read as another number
        return bool(verify(right, given, timeout_seconds=None))

    equal("$\\frac{1}{2}$", "so it is $0.5$")  # imports and caches of the first use
    return equal
