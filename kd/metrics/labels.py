"""Classes that a text names: macro-averaged F1, and agreement beyond chance."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kd.metrics.corpus import CorpusMetric
from kd.metrics.words import answer_tokens, normalised

VERSION = 2  # an answer alone has no kappa
_label = lru_cache(2**12)(normalised)  # the same few classes for every answer


class MacroF1(CorpusMetric):
    """The mean over the classes of the references of 2 TP / (2 TP + FP + FN).

    A row has the class that the answer names and the right one: the answer itself, but for case, punctuation and
    articles; where it is longer and the record has `choices`, the choice that it names first. An answer that names
    none counts against its right class alone.
    """

    def __call__(self, text: str, references: Sequence[str], meta: Mapping[str, Any]) -> tuple[str, str]:
        """The two classes of one answer."""
        labels = [_label(str(label)) for label in meta.get("choices") or ()]
        return named(text, labels), named(references[0], labels)

    def coded(self, rows: np.ndarray) -> np.ndarray:
        """The classes as numbers, in the order of their names."""
        return np.unique(rows, return_inverse=True)[1].reshape(rows.shape)

    def total(self, rows: np.ndarray) -> float:
        """Macro-F1 of rows (named, right), of names or of their numbers."""
        found, right = (rows if rows.dtype.kind == "i" else self.coded(rows)).T
        size = int(max(found.max(), right.max())) + 1
        both, wanted = (np.bincount(some, minlength=size) for some in (right[found == right], right))
        either, present = wanted + np.bincount(found, minlength=size), wanted > 0
        return float(np.mean(2 * both[present] / either[present]))


@lru_cache(2**12)
def _words(label: str) -> str:
    return " ".join(answer_tokens(label))


class Kappa(MacroF1):
    """Cohen's kappa of the classes that answers name with the right ones, as of a judge with people (`cohen_kappa`).

    Rows are those of `MacroF1`; an answer that names no class has a class of its own, "".
    """

    of_one = False

    def total(self, rows: np.ndarray) -> float:
        """Kappa of rows (named, right)."""
        return cohen_kappa(rows[:, 0], rows[:, 1])


def cohen_kappa(one: Sequence[Any] | np.ndarray, other: Sequence[Any] | np.ndarray) -> float:
    """Agreement of two raters of the same items beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the share of items that both put into the same class, p_e = sum_k p_k q_k what independent raters with the
    same shares of classes would reach. NaN where p_e is 1: both know one class only, the same.
    """
    one, other = np.asarray(one), np.asarray(other)
    classes = np.unique(np.concatenate([one, other]))
    observed = (one == other).mean()
    expected = sum((one == label).mean() * (other == label).mean() for label in classes)
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def named(text: str, labels: Sequence[str]) -> str:
    """The normalised text if it is one of the labels, or there are none; else the label that occurs first in it.

    Of labels that begin at the same word the longest counts; "" where none occurs.
    """
    whole = normalised(text)
    if whole in labels or not labels:
        return whole
    words = f" {' '.join(answer_tokens(text))} "
    spaced = {label: f" {_words(label)} " for label in labels if label}
    places = [(words.find(w), -len(w), label) for label, w in spaced.items() if w in words]
    return min(places)[2] if places else ""
