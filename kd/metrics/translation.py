"""BLEU and chrF of a corpus, as the package sacrebleu has them, and SARI; between 0 and 100, as papers print them."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from kd.metrics.corpus import CorpusMetric

Grams = Counter[tuple[str, ...]]


class Bleu(CorpusMetric):
    """BLEU (Papineni et al. 2002) of all answers against all references, with sacrebleu's exponential smoothing.

    A row has the lengths of answer and reference and, for n = 1 to 4, the matched and all n-grams.

    Args:
        tokenize: sacrebleu's tokenizer: `13a`, `intl`, `zh` for Chinese, `char`, or `none`.
        lowercase: ignore case.
    """

    def __init__(self, *, tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a", lowercase: bool = False):
        self.of = BLEU(tokenize=tokenize, lowercase=lowercase)

    def __call__(self, text: str, references: Sequence[str]) -> list[int]:
        """The row of one answer."""
        return self.of._extract_corpus_statistics([text], [[reference] for reference in references])[0]

    def total(self, rows: np.ndarray) -> float:
        """BLEU of the summed rows."""
        score = self.of._compute_score_from_stats(rows.sum(0).astype(int).tolist()).score
        return min(float(score), 100.0)  # the exponential of a mean of logarithms is rounded


class Chrf(CorpusMetric):
    """chrF (Popović 2015): F-score of n-grams of characters, n = 1 to 6, summed over all answers.

    A row has, for each n, the n-grams of the answer, of its best reference, and those in both.

    Args:
        word_order: 2 adds words and pairs of words (chrF++).
        beta: how much more recall counts than precision.
    """

    def __init__(self, *, word_order: int = 0, beta: int = 2):
        self.of = CHRF(word_order=word_order, beta=beta)

    def __call__(self, text: str, references: Sequence[str]) -> list[int]:
        """The row of one answer."""
        return self.of._extract_corpus_statistics([text], [[reference] for reference in references])[0]

    def total(self, rows: np.ndarray) -> float:
        """The score of the summed rows."""
        return float(self.of._compute_score_from_stats(rows.sum(0).astype(int).tolist()).score)


def sari(text: str, source: str, references: Sequence[str]) -> float:
    """SARI of a simplification against its source (Xu et al. 2016): mean over n = 1 to 4 of words' n-grams of

        (F1 of what was added + F1 of what was kept + precision of what was deleted) / 3,

    each n-gram weighted by the share of references that have it; 0 / 0 is 0, as in the paper's script. Words are parted
    by white space, in lower case. Between 0 and 100.
    """
    candidate, original = text.lower().split(), source.lower().split()
    wanted = [reference.lower().split() for reference in references]
    parts = [
        _operations(_grams(original, n), _grams(candidate, n), [_grams(w, n) for w in wanted]) for n in range(1, 5)
    ]
    return 100 * float(np.mean(parts))


def _grams(words: Sequence[str], n: int) -> Grams:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _operations(source: Grams, candidate: Grams, references: Sequence[Grams]) -> tuple[float, float, float]:
    """F1 of additions, F1 of what is kept, precision of deletions."""
    count = len(references)
    wanted: Grams = Counter()
    for reference in references:
        wanted.update(reference)
    here = Counter({gram: k * count for gram, k in source.items()})  # as often as if every reference were the same
    there = Counter({gram: k * count for gram, k in candidate.items()})
    kept, deleted = here & there, here - there
    good = kept & wanted
    keep = _f1(_share(good, kept), _share(good, here & wanted))
    added, missing = candidate.keys() - source.keys(), wanted.keys() - source.keys()
    right = len(added & missing)
    add = _f1(right / max(len(added), 1), right / max(len(missing), 1))
    return add, keep, _share(deleted - wanted, deleted)


def _share(part: Grams, whole: Grams) -> float:
    """Mean over the n-grams of `whole` of part / whole."""
    return sum(part[gram] / k for gram, k in whole.items()) / max(len(whole), 1)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
