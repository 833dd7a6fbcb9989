"""Strategies that choose the next token, given the logits of one or several models.

A strategy is called with one `[b V]` tensor of logits per reader, over the ids that the tokenizers have, in float32 or
wider; it returns the ids and their log-probabilities under the distribution that they were drawn from. Random
numbers come from torch's global generator, one for each row and draw.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Chosen = tuple[Int[Tensor, " b"], Float[Tensor, " b"]]
_BLOCK = 256  # ids whose probabilities are added up before the draw looks at single ones
_CANDIDATES = 256  # likeliest ids to look at first for a nucleus


@runtime_checkable
class Choose(Protocol):
    """A strategy: the next token of each row."""

    @property
    def untempered(self) -> bool:
        """True if its log-probabilities are the first reader's own, at temperature 1 and of all ids."""
        return False

    @property
    def certain(self) -> bool:
        """True if it draws no random numbers, so that the order of the rows changes nothing."""
        return False

    @abstractmethod
    def __call__(self, logits: Sequence[Float[Tensor, "b V"]]) -> Chosen:
        """One id for each row, given one tensor of logits per reader."""


class Sampled(Choose):
    """A draw from the first reader's distribution, tempered, and cut to its nucleus.

    Args:
        temperature: 0 is greedy: the likeliest id, drawn with certainty (log-probability 0), no random number used.
        top_p: only the fewest ids that together reach this probability may be drawn (arXiv 1904.09751); 1 is all.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0):
        self.temperature, self.top_p = temperature, top_p

    @property
    def untempered(self) -> bool:
        """True if it draws from the reader's own distribution, so that the log-probabilities are the reader's own."""
        return self.temperature == self.top_p == 1

    @property
    def certain(self) -> bool:
        """True if it is greedy."""
        return self.temperature == 0

    def __call__(self, logits: Sequence[Float[Tensor, "b V"]]) -> Chosen:
        """One id for each row."""
        if self.temperature == 0:
            ids = logits[0].argmax(-1)
            return ids, logits[0].new_zeros(len(ids))
        tempered = logits[0] if self.temperature == 1 else logits[0] / self.temperature
        return drawn(tempered) if self.top_p == 1 else drawn_from_nucleus(tempered, self.top_p)


def drawn(logits: Float[Tensor, "b V"]) -> Chosen:
    """One id per row from softmax(logits), and its log-probability.

    Inverse CDF in two steps, over blocks of ids and within one: the running sum of a whole vocabulary costs more than
    everything else here, and in float32 would round the probabilities of rare ids.
    """
    probabilities = logits.softmax(-1)
    ids = _places(probabilities)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


def drawn_from_nucleus(logits: Float[Tensor, "b V"], top_p: float) -> Chosen:
    """One id per row from the fewest ids whose probabilities add up to `top_p`, and its log-probability there."""
    likeliest, order = nucleus(logits.log_softmax(-1), top_p)
    place, logprobs = drawn(likeliest)
    return order.gather(-1, place[:, None])[:, 0], logprobs


def nucleus(logprobs: Float[Tensor, "b V"], top_p: float) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Log-probabilities of the likeliest ids in descending order, -inf outside the nucleus, and those ids.

    An id belongs to it if those before it have not reached `top_p`; the first always does. The vocabulary is sorted
    only as far as a nucleus of the batch needs.
    """
    size = logprobs.shape[-1]
    k = min(_CANDIDATES, size)
    while True:
        values, order = logprobs.topk(k) if k < size else logprobs.sort(descending=True)
        before = values.exp().cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        if k == size or bool((before[:, -1] >= top_p).all()):
            return values.masked_fill(before >= top_p, -torch.inf), order
        k = size if 16 * k > size else 4 * k


def logprobs_of(logits: Float[Tensor, "b V"], ids: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log softmax(logits) at one id per row."""
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _places(weights: Float[Tensor, "b V"]) -> Int[Tensor, " b"]:
    """One place per row with probability in proportion to its weight."""
    rows, size = weights.shape
    if size % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, _BLOCK - size % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    block, rest = _inverted(blocks.sum(-1), torch.rand(rows, dtype=torch.float64, device=weights.device))
    place, _ = _inverted(blocks[torch.arange(rows, device=weights.device), block], rest)
    return block * _BLOCK + place


def _inverted(weights: Float[Tensor, "b n"], u: Float[Tensor, " b"]) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
    """The place where the running sum passes the share `u` of the whole, and how far into that place, in [0, 1]."""
    weights = weights.double()
    running = weights.cumsum(-1)
    target = u[:, None] * running[:, -1:]
    place = torch.searchsorted(running, target, right=True)
    place = place.minimum((weights > 0).cumsum(-1).argmax(-1, keepdim=True))  # u may be rounded to the very end
    into = (target - running.gather(-1, place)) / weights.gather(-1, place) + 1
    return place[:, 0], into[:, 0].clamp(0, 1)
