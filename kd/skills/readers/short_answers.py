"""Questions with a short right answer, or several ways to write it."""

import re
from collections.abc import Iterator
from pathlib import Path

from kd.skills.readers.json_values import Row, values

NUMBER = re.compile(r"-?\d+(?:[.,/:]\d+)*")
BRACKETED = re.compile(r"\[([^\[\],]+)\]")
ENDING = re.compile(r"\s*Answer:\s*$")


def evals(path: Path) -> Iterator[Row]:
    """Samples of OpenAI's package evals: `question` (the last message of the prompt) and the right answers.

    The system messages, of which some require reasoning before the answer, are left out, and so is the "Answer:" at the
    end of a question. Rows have `question`, `response` and `references`, without brackets around a single answer.
    """
    for row in values(path):
        prompt, ideal = row["input"], row["ideal"]
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        answers = [_unbracketed(str(answer)) for answer in (ideal if isinstance(ideal, list) else [ideal])]
        if text.strip() and all(answers):
            yield {"question": ENDING.sub("", text).strip(), "response": answers[0], "references": answers}


def _unbracketed(answer: str) -> str:
    match = BRACKETED.fullmatch(answer.strip())
    return (match[1] if match else answer).strip()


def asdiv(path: Path) -> Iterator[Row]:
    """Word problems of ASDiv: `passage`, `question`, `response` ("11 plums") and its number, `answer`.

    Answers that hold no number, or several, are left out.
    """
    for row in values(path):
        numbers = NUMBER.findall(row["answer"])
        if len(numbers) == 1:
            yield {
                "passage": row["passage"].strip(),
                "question": row["question"].strip(),
                "response": f"The answer is {row['answer'].strip()}.",
                "answer": numbers[0].replace(",", ""),
            }


def truthful(path: Path) -> Iterator[Row]:
    """TruthfulQA's questions: `question` and `references`, its true answers, the best first."""
    for row in values(path):
        answers = [answer.strip() for answer in row["answer"] if answer.strip()]
        if answers:
            yield {"question": row["question"].strip(), "references": answers}
