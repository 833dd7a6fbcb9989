"""Classes that a text names: macro-averaged F1."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd.metrics.corpus import CorpusMetric
from kd.metrics.words import answer_tokens, normalised


class MacroF1(CorpusMetric):
    """The mean over the classes of the references of 2 TP / (2 TP + FP + FN).

    A row has the class that the answer names and the right one: the answer itself, but for case, punctuation and
    articles; where it is longer and the record has `choices`, the choice that it names first. An answer that names
    none counts against its right class alone.
    """

    def __call__(self, text: str, references: Sequence[str], meta: Mapping[str, Any]) -> tuple[str, str]:
        """The two classes of one answer."""
        labels = [normalised(str(label)) for label in meta.get("choices") or ()]
        return named(text, labels), named(references[0], labels)

    def total(self, rows: np.ndarray) -> float:
        """Macro-F1 of rows (named, right)."""
        found, right = rows[:, 0], rows[:, 1]
        scores = []
        for label in np.unique(right):
            both, either = ((found == label) & (right == label)).sum(), (found == label).sum() + (right == label).sum()
            scores.append(2 * both / either)
        return float(np.mean(scores))


def named(text: str, labels: Sequence[str]) -> str:
    """The normalised text if it is one of the labels, or there are none; else the label that occurs first in it.

    Of labels that begin at the same word the longest counts; "" where none occurs.
    """
    whole = normalised(text)
    if whole in labels or not labels:
        return whole
    words = f" {' '.join(answer_tokens(text))} "
    spaced = {label: f" {' '.join(answer_tokens(label))} " for label in labels if label}
    places = [(words.find(w), -len(w), label) for label, w in spaced.items() if w in words]
    return min(places)[2] if places else ""
