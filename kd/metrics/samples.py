"""Metrics of several answers to one prompt (`evaluation.samples`): pass@k and diversity.

Example:
    >>> pass_at_k([1.0, 0.0, 0.0, 0.0], k=2)
    0.5
    >>> distinct(["a b", "a c"], n=1)
    0.75
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER
from sacrebleu.metrics.helpers import extract_all_word_ngrams

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
    extracted = [extract_all_word_ngrams(bleu._preprocess_segment(text), 1, MAX_NGRAM_ORDER) for text in texts]
    highest: dict[tuple[str, ...], tuple[int, int]] = {}  # of each n-gram, its two highest counts in a sample
    for grams, _ in extracted:
        for gram, count in grams.items():
            first, second = highest.get(gram, (0, 0))
            highest[gram] = max(first, count), max(second, min(first, count))
    lengths = Counter(length for _, length in extracted)
    return sum(_bleu_of_others(*one, highest, lengths) for one in extracted) / len(texts)


def _bleu_of_others(
    grams: Mapping[tuple[str, ...], int],
    length: int,
    highest: Mapping[tuple[str, ...], tuple[int, int]],
    lengths: Mapping[int, int],
) -> float:
    """BLEU of one sample against all others, as sacrebleu's `sentence_score` has it, without reading them again."""
    correct, total = [0] * MAX_NGRAM_ORDER, [0] * MAX_NGRAM_ORDER
    for gram, count in grams.items():
        first, second = highest[gram]
        total[len(gram) - 1] += count
        correct[len(gram) - 1] += min(count, second if count == first else first)
    others = [other for other, count in lengths.items() if other != length or count > 1]
    closest = min(others, key=lambda other: (abs(other - length), other))
    score = BLEU.compute_bleu(correct, total, length, closest, smooth_method="exp", effective_order=True).score
    return min(float(score), 100.0)  # but for rounding
