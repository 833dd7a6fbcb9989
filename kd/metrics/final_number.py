"""The final number of a free-text solution."""

import re

ANSWER = re.compile(r"answer\s*(?:is\b|[:=])", re.IGNORECASE)

# A minus is a sign only where no operand stands before it: "7-5" ends in 5, not in -5.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w).])[-\u2212])?[$€£]?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def final_number(text: str) -> str | None:
    """The number that a solution arrives at, in plain decimals, or None if the text has no number.

    It is the first number after the last "answer is" or "answer:" that is followed by one, else the last number
    of the text. Currency signs, thousands separators and the sentence's period are dropped:
    "The answer is $1,200." gives "1200".
    """
    for phrase in reversed(list(ANSWER.finditer(text))):
        if match := NUMBER.search(text, phrase.end()):
            return _plain(match)
    matches = list(NUMBER.finditer(text))
    return _plain(matches[-1]) if matches else None


def _plain(match: re.Match[str]) -> str:
    digits = match["digits"].replace(",", "")
    return ("-" if match["sign"] else "") + ("0" if digits.startswith(".") else "") + digits
