"""The overlap of an answer with its references: exact match, token F1, ROUGE. Of several references the best counts.

Example:
    >>> exact_match("The answer.", ["answer"])
    1.0
    >>> token_f1("a cat sat", ["the cat sat down"])
    0.8
    >>> round(rouge_l("police kill the gunman", ["police killed the gunman"]), 2)
    0.75
"""

from collections import Counter
from collections.abc import Hashable, Sequence

from kd.metrics.words import Normalisation, answer_tokens, normalised, rouge_tokens


def exact_match(text: str, references: Sequence[str], *, normalise: Normalisation = "squad") -> float:
    """1 if the answer is one of the references, else 0.

    normalise: the differences that do not count (`kd.metrics.words.normalised`): `squad`, those of case, punctuation
        and articles; `spaces`, those of white space; `none`.
    """
    found = normalised(text, normalise)
    return float(any(found == normalised(reference, normalise) for reference in references))


def contains(text: str, references: Sequence[str], *, normalise: Normalisation = "squad") -> float:
    """1 if the answer contains a reference as whole words, else 0 (str-EM of ASQA, Stelmakh et al. 2022; PopQA).

    normalise: as in `exact_match`.
    """
    found = f" {' '.join(answer_tokens(text))} " if normalise == "squad" else f" {normalised(text, normalise)} "
    wanted = [" ".join(answer_tokens(r)) if normalise == "squad" else normalised(r, normalise) for r in references]
    return float(any(one and f" {one} " in found for one in wanted))


def token_f1(text: str, references: Sequence[str]) -> float:
    """F1 of the answer's words against the reference's, each counted as often as it occurs (SQuAD, arXiv 1606.05250).

    Where either has no word left, 1 if both have none, else 0.
    """
    found = answer_tokens(text)
    return max((_f1_of_counts(found, answer_tokens(reference)) for reference in references), default=0.0)


def rouge_n(text: str, references: Sequence[str], *, n: int = 1, stemmer: bool = False) -> float:
    """F1 of the n-grams of words that answer and reference share (Lin 2004, ROUGE-N); 0 where either has none.

    n: length of the n-grams.
    stemmer: compare stems of words (`kd.metrics.words.rouge_tokens`).
    """
    found = _ngrams(rouge_tokens(text, stemmer=stemmer), n)
    return max(
        (_f1_of_counts(found, _ngrams(rouge_tokens(r, stemmer=stemmer), n), empty=0.0) for r in references),
        default=0.0,
    )


def rouge_l(text: str, references: Sequence[str], *, stemmer: bool = False) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, ROUGE-L); 0 where either has no word.

    stemmer: compare stems of words (`kd.metrics.words.rouge_tokens`); MiniLLM (arXiv 2306.08543) does.
    """
    found = rouge_tokens(text, stemmer=stemmer)
    best = 0.0
    for reference in references:
        wanted = rouge_tokens(reference, stemmer=stemmer)
        best = max(best, _f1(common_subsequence(found, wanted), len(found), len(wanted)))
    return best


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence; a row of the table is the bits of a number (Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full  # a 0 where the length grows
    for item in b:
        met = row & places.get(item, 0)
        row = ((row + met) | (row - met)) & full
    return len(a) - row.bit_count()


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _f1_of_counts(found: Sequence[Hashable], wanted: Sequence[Hashable], *, empty: float = 1.0) -> float:
    if not found and not wanted:
        return empty
    return _f1((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))


def _f1(shared: int, found: int, wanted: int) -> float:
    """2 P R / (P + R) with P = shared / found, R = shared / wanted."""
    return 2 * shared / (found + wanted) if shared else 0.0
