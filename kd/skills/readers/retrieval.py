"""Questions with a passage that answers each, as candidates to be ranked."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd.skills.readers.choices import CONTEXT
from kd.skills.readers.json_values import Row, values

CANDIDATES = 10
WORDS = 48  # of a passage: a ranker of small context reads ten beginnings
WORD = re.compile(r"[a-z0-9]+")


def candidates(path: Path) -> Iterator[Row]:
    """Rows with `question`, ten `choices` (beginnings of passages) of which one answers it, `answer_index`, `answer`.

    The nine others are those that a first stage would return with it: the most similar to the question of all others in
    the file, by the sum of log inverse document frequencies of shared words. Their order does not depend on the answer.
    A row's passage is `passage`, or else `answer`.
    """
    rows = [(row["question"].strip(), _beginning(row)) for row in values(path)]
    found = _Index([passage for _, passage in rows])
    for place, (question, passage) in enumerate(rows):
        others = [other for other in found.nearest(question) if rows[other][1] != passage][: CANDIDATES - 1]
        choices = sorted({rows[other][1] for other in others} | {passage})
        index = choices.index(passage)
        yield {"id": place, "question": question, "choices": choices, "answer_index": index, "answer": passage}


def _beginning(row: Row) -> str:
    return " ".join(_passage(row).split()[:WORDS])


def _passage(row: Row) -> str:
    """The text without marks of paragraphs, and without the quotation marks of a table's cell."""
    text = CONTEXT.sub("", row.get("passage") or row["answer"]).strip()
    return text[1:-1].replace('""', '"') if text.startswith('"') and text.endswith('"') else text


class _Index:
    """Which passages hold which words."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.size = len(passages)
        self.places: defaultdict[str, list[int]] = defaultdict(list)
        for place, passage in enumerate(passages):
            for word in sorted(set(WORD.findall(passage.lower()))):
                self.places[word].append(place)

    def nearest(self, question: str) -> list[int]:
        """All passages that share a word with the question, the most similar first; then the others."""
        scores: Counter[int] = Counter()
        for word in sorted(set(WORD.findall(question.lower()))):
            weight = math.log(self.size / len(self.places[word])) if word in self.places else 0.0
            scores.update(dict.fromkeys(self.places.get(word, ()), weight))
        return sorted(range(self.size), key=lambda place: (-scores[place], place))


def passages(path: Path) -> Iterator[Row]:
    """Rows with `asked`, a question, and `passage`, which answers it."""
    for row in values(path):
        yield {"asked": row["question"].strip(), "passage": " ".join(_passage(row).split())}
