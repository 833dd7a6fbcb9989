"""Metrics of several answers to one prompt (`evaluation.samples`): pass@k and diversity.

Example:
    >>> pass_at_k([1.0, 0.0, 0.0, 0.0], k=2)
    0.5
    >>> distinct(["a b", "a c"], n=1)
    0.75
"""

import math
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from kd.metrics.words import rouge_tokens


def pass_at_k(scores: Sequence[float], *, k: int = 1) -> float:
    """The probability that one of k samples is right, without bias from n >= k of them: 1 - C(n-c, k) / C(n, k).

    c of the n scores are the best (Chen et al. 2021, arXiv 2107.03374, eq. 1); a partial score is not right.

    k: samples that may be tried.

    Raises:
        ValueError: fewer samples than k.
    """
    n, c = len(scores), sum(score >= 1 for score in scores)
    if n < k:
        raise ValueError(f"pass@{k} requires {k} answers to each prompt, and there are {n}; set evaluation.samples={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def distinct(texts: Sequence[str], *, n: int = 2) -> float:
    """Different n-grams of words over all n-grams of the samples (distinct-n, Li et al. 2016); 0 without any.

    n: length of the n-grams.
    """
    grams = [gram for text in texts for gram in zip(*(rouge_tokens(text)[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each sample against the others (Zhu et al. 2018), 0 to 100; the lower, the more diverse.

    Raises:
        ValueError: a single sample.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU compares answers to one prompt, and there is one; set evaluation.samples=4")
    bleu = BLEU(effective_order=True)
    others = [[other for j, other in enumerate(texts) if j != i] for i in range(len(texts))]
    return sum(bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)) / len(texts)
