"""Rankings of a record's choices: nDCG, reciprocal rank, hits; by their likelihood, or as an answer lists them.

`relevance[i]` is the gain of choice i, 0 where it is not relevant. Equal likelihoods are ordered as trec_eval orders
equal scores, the later choice first, so that a constant model does not profit from an order of the data.

Example:
    >>> reciprocal_rank([-1.0, -3.0, -2.0], [0, 0, 1])
    0.5
    >>> listed_order("[3] > [1]", ["a", "b", "c"])
    [2, 0, 1]
"""

import re
from collections.abc import Sequence

import numpy as np

_BRACKETS = re.compile(r"\[(\d{1,4})\]")
_NUMBERS = re.compile(r"(?<![\w.])(\d{1,4})(?![\w])")


def ndcg(logprobs: Sequence[float | int], relevance: Sequence[float | int], *, k: int = 10) -> float:
    """DCG@k / ideal DCG@k with DCG@k = sum_{i<=k} relevance_i / log2(i + 1) (Järvelin & Kekäläinen 2002); 0 / 0 is 0.

    k: ranks that count.
    """
    return _ndcg(likely_order(logprobs), relevance, k)


def reciprocal_rank(logprobs: Sequence[float | int], relevance: Sequence[float | int], *, k: int = 10) -> float:
    """1 / rank of the first relevant choice; 0 where none is among the first k.

    k: ranks that count.
    """
    return _reciprocal(likely_order(logprobs), relevance, k)


def hit(logprobs: Sequence[float | int], relevance: Sequence[float | int], *, k: int = 10) -> float:
    """1 if a relevant choice is among the first k, else 0.

    k: ranks that count.
    """
    return float(_reciprocal(likely_order(logprobs), relevance, k) > 0)


def listed_ndcg(text: str, choices: Sequence[str], relevance: Sequence[float | int], *, k: int = 10) -> float:
    """`ndcg` of the order in which an answer lists the choices (`listed_order`).

    k: ranks that count.
    """
    return _ndcg(listed_order(text, choices), relevance, k)


def listed_reciprocal_rank(
    text: str, choices: Sequence[str], relevance: Sequence[float | int], *, k: int = 10
) -> float:
    """`reciprocal_rank` of the order in which an answer lists the choices (`listed_order`).

    k: ranks that count.
    """
    return _reciprocal(listed_order(text, choices), relevance, k)


def listed_hit(text: str, choices: Sequence[str], relevance: Sequence[float | int], *, k: int = 10) -> float:
    """`hit` of the order in which an answer lists the choices (`listed_order`).

    k: ranks that count.
    """
    return float(_reciprocal(listed_order(text, choices), relevance, k) > 0)


def likely_order(logprobs: Sequence[float | int]) -> list[int]:
    """The places of the choices from the most likely on."""
    return sorted(range(len(logprobs)), key=lambda i: (logprobs[i], i), reverse=True)


def listed_order(text: str, choices: Sequence[str]) -> list[int]:
    """The places of the choices in the order of an answer such as "[2] > [1]", their numbers from 1 on in brackets.

    Without brackets, plain numbers; without these, the choices' texts by their first occurrence. What is repeated or
    unknown is skipped, and what is missing follows in the order of the data (RankGPT, Sun et al. 2023).
    """
    numbers = _BRACKETS.findall(text) or _NUMBERS.findall(text)
    found = [int(number) - 1 for number in numbers]
    if not any(0 <= i < len(choices) for i in found):
        lower = text.lower()
        places = {i: lower.find(choice.lower()) for i, choice in enumerate(choices) if choice}
        found = sorted((i for i, place in places.items() if place >= 0), key=lambda i: (places[i], -len(choices[i])))
    listed = dict.fromkeys(i for i in found if 0 <= i < len(choices))
    return [*listed, *(i for i in range(len(choices)) if i not in listed)]


def _ndcg(order: Sequence[int], relevance: Sequence[float | int], k: int) -> float:
    ideal = _dcg(sorted(relevance, reverse=True)[:k])
    return _dcg([relevance[i] for i in order[:k]]) / ideal if ideal > 0 else 0.0


def _dcg(gains: Sequence[float | int]) -> float:
    return float((np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))).sum())


def _reciprocal(order: Sequence[int], relevance: Sequence[float | int], k: int) -> float:
    return next((1 / rank for rank, i in enumerate(order[:k], start=1) if relevance[i] > 0), 0.0)
