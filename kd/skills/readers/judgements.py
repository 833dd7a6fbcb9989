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
        yield _judged(row, float(row["human_score"]))


def harms(path: Path) -> Iterator[Row]:
    """Pyrit's requests with a model's answer, and whether most people who read it call it harmful (0.5 or more of 1).

    The people's mean is `human_score`. Rows else as those of `refusals`, with `category`.
    """
    for row in tables(path):
        scores = [float(value) for key, value in row.items() if key.startswith("human_score") and value]
        if scores:
            mean = sum(scores) / len(scores)
            yield {**_judged(row, mean), "human_score": mean, "category": row["harm_category"]}


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
    """The rows of a table of comma-separated values after a line `# dataset_version=...`."""
    text = path.read_text(encoding="utf-8-sig")
    yield from csv.DictReader(io.StringIO(text.partition("\n")[2] if text.startswith("#") else text))


def factual(path: Path) -> Iterator[Row]:
    """Sentences of articles with a summary that is true to it and one that is not, as a pair to choose from.

    Rows have `article`, `choices` in an order that does not depend on the answer, `answer_index` and `answer`.
    """
    for row in values(path):
        right, wrong = row["correct_sent"].strip(), row["incorrect_sent"].strip()
        if right and wrong and right != wrong:
            choices = sorted([right, wrong])
            index = choices.index(right)
            yield {"article": row["article_sent"].strip(), "choices": choices, "answer_index": index, "answer": right}
