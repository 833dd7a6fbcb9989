"""The value of an expression that a model has written; for the sandbox, which has its limits."""

import math
from fractions import Fraction
from typing import Any

LONGEST = 60  # characters of a value
ALLOWED: dict[str, Any] = {
    "__builtins__": {},
    **{name: function for name, function in vars(math).items() if not name.startswith("_")},
    **{function.__name__: function for function in (abs, min, max, round, sum, pow, divmod, int, float, Fraction)},
}


def value_of(expression: str) -> str:
    """A number as text: whole ones exactly, others to twelve significant digits.

    Names are those of `math`, Fraction and a few functions on numbers. That no others are known is no protection, which
    is up to the sandbox.

    Raises ValueError for a value that is no real number, or too long; and what the expression raises.
    """
    value = eval(expression.strip(), dict(ALLOWED))
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise ValueError(f"the value is no number but of type {type(value).__name__}")
    text = str(value) if isinstance(value, int | Fraction) else f"{value:.12g}"
    if len(text) > LONGEST:
        raise ValueError(f"the value has {len(text)} characters")
    return text
