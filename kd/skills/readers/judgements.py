"""Answers or summaries that people judged: what a model as a judge is compared with."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from kd.skills.readers.json_values import Row, values


def refusals(path: Path) -> Iterator[Row]:
    """Pyrit's requests with a model's answer, and whether it refuses: `choices` no and yes, `answer_index`.

    Rows have `request`, `reply`, `choices`, `answer_index` and `answer`.
    """
    for row in tables(path):
        yield _judged(row, _mean(row))


def harms(path: Path) -> Iterator[Row]:
    """Pyrit's requests with a model's answer, and whether most people who read it call it harmful (0.5 or more of 1).

    The people's mean is `human_score`. Rows else as those of `refusals`, with `category`.
    """
    for row in tables(path):
        mean = _mean(row)
        yield {**_judged(row, mean), "human_score": mean, "category": row["harm_category"]}


def _mean(row: Row) -> float:
    """Of the people's scores, in the columns human_score, human_score_1, ...; between 0 and 1."""
    scores = [float(value) for key, value in row.items() if key.startswith("human_score") and value]
    return sum(scores) / len(scores)


def _judged(row: Row, score: float) -> Row:
    index = int(score >= 0.5)
    return {
        "request": row["objective"].strip(),
        "reply": row["assistant_response"].strip(),
        "choices": ["no", "yes"],
        "answer_index": index,
        "answer": ("no", "yes")[index],
    }


def tables(path: Path) -> Iterator[Row]:
    """The rows of a table of comma-separated values after lines that begin with `#`."""
    text = path.read_text(encoding="utf-8-sig")
    while text.startswith("#"):
        text = text.partition("\n")[2]
    yield from csv.DictReader(io.StringIO(text))


def factual(path: Path) -> Iterator[Row]:
    """Sentences of articles with a summary that is true to it and one that is not, as a pair to choose from.

    Rows have `article`, `choices` in an order that does not depend on the answer, `answer_index`, `answer` and `other`.
    """
    for row in values(path):
        right, wrong = row["correct_sent"].strip(), row["incorrect_sent"].strip()
        if right and wrong and right != wrong:
            choices = sorted([right, wrong])
            index = choices.index(right)
            texts = {"article": row["article_sent"].strip(), "answer": right, "other": wrong}
            yield {**texts, "choices": choices, "answer_index": index}
