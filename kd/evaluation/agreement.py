"""Diagnostics beside the loss: agreement with the teacher, certainty, calibration. Never part of a loss.

Everything but `calibration_error` is a function of rows, `[*n V] -> [*n]`, and leaves averaging to its caller.
Logits and log-probabilities serve alike: softmax maps both to the same distribution. The divergences are those of
`kd.objectives.divergence`, in nats.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.objectives.divergence import forward_kl, log_probs, reverse_kl

__all__ = ["calibration_error", "confidence", "correct", "entropy", "forward_kl", "reverse_kl", "top1_agreement"]


def top1_agreement(student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"]) -> Bool[Tensor, "*n"]:
    """True where the most probable ids of both are the same; among equals the lowest id counts."""
    return student_logits.argmax(-1) == teacher_logits.argmax(-1)


def entropy(logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """-sum_v q(v) log q(v), in nats, between 0 and log V."""
    q = log_probs(logits)
    return -(q.exp() * q).sum(-1)


def confidence(logits: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """max_v q(v), the probability of the id that greedy decoding would take."""
    return log_probs(logits).max(-1).values.exp()


def correct(logits: Float[Tensor, "*n V"], labels: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """True where the most probable id is the label."""
    return logits.argmax(-1) == labels


def calibration_error(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], *, bins: int = 15
) -> Float[Tensor, ""]:
    """sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|, over equally wide bins of confidence; NaN without rows.

    Expected calibration error of Guo et al. (arXiv 1706.04599, eq. 3). It needs all rows at once, but of each only
    `confidence` and `correct`, which are made chunk by chunk.
    """
    gap = confidence.double() - correct.double()
    # bins are open on the left, as in the paper: (0, 1/bins], (1/bins, 2/bins], ...
    index = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    sums = torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add(0, index, gap)
    return sums.abs().sum() / len(gap)
