"""The choice that a model prefers, by the log-likelihood of each choice after the prompt, in nats.

`logprobs[i]` is the sum over the tokens of choice i, without an end token. Choices of equal value share the credit.

Example:
    >>> choice_accuracy([-4.0, -3.0], 1)
    1.0
    >>> choice_accuracy_length([-4.0, -3.0], ["a long one", "no"], 1)
    0.0
    >>> choice_accuracy_pmi([-4.0, -3.0], [-9.0, -3.5], 1)
    0.0
"""

from collections.abc import Sequence


def choice_accuracy(logprobs: Sequence[float], answer_index: int) -> float:
    """1 if the right choice is the most likely, argmax_i log p(c_i | x); 0 if not."""
    return _credit(logprobs, answer_index)


def choice_accuracy_length(logprobs: Sequence[float], choices: Sequence[str], answer_index: int) -> float:
    """The same for log p(c_i | x) / |c_i|, |c_i| the characters of the choice (`acc_norm` of lm-evaluation-harness)."""
    return _credit([value / max(len(c), 1) for value, c in zip(logprobs, choices, strict=True)], answer_index)


def choice_accuracy_pmi(logprobs: Sequence[float], prior_logprobs: Sequence[float], answer_index: int) -> float:
    """The same for log p(c_i | x) - log p(c_i | empty prompt), pointwise mutual information.

    A choice that is likely after any prompt does not profit from that (Holtzman et al. 2021, arXiv 2104.08315).
    """
    gains = [value - prior for value, prior in zip(logprobs, prior_logprobs, strict=True)]
    return _credit(gains, answer_index)


def _credit(values: Sequence[float], answer_index: int) -> float:
    """1 / k if the right choice is one of the k best, else 0."""
    best = max(values)
    return float(values[answer_index] == best) / sum(value == best for value in values)
