"""Decoupled distillation: how probable the label is, and how the rest is shared out, each with its own weight."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.objectives.divergence import LOG_ZERO, NonNegative, Positive, kl, log_probs, temperature_scale


def dkd(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    labels: Int[Tensor, "*n"],
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """alpha KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta KL(p_rest || q_rest), y = the label; phi' = -alpha p_y/q_y at
    y, -alpha (1 - p_y)/(1 - q_y) + beta [1/(1 - q_y) - p_v/(q_v (1 - p_y))] elsewhere. DKD, arXiv 2203.08679, eq. 7.

    p_rest and q_rest are the distributions over the other ids, each summing to 1. KL(p || q) is alpha = 1,
    beta = 1 - p_y: forward KL neglects the rest where the teacher is sure, which a constant beta undoes. The paper
    multiplies by temperature^2 and takes beta = 8 on CIFAR-100; TAID's baseline for language models takes 0.5.
    """
    scale = temperature_scale(temperature, temperature_squared)
    p, p_rest = _split(log_probs(teacher_logits, temperature), labels)
    q, q_rest = _split(log_probs(student_logits, temperature), labels)
    return (alpha * kl(p, q) + beta * kl(p_rest, q_rest)) * scale


def _split(
    logs: Float[Tensor, "*n V"], labels: Int[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n 2"], Float[Tensor, "*n V"]]:
    """(log p_y, log (1 - p_y)), and the logarithm of the distribution over the other ids, `LOG_ZERO` at y.

    The mass of the others is summed from them: 1 - p_y has no digits left where p_y is nearly 1.
    """
    index = labels.unsqueeze(-1)
    others = logs.scatter(-1, index, -torch.inf)
    mass = others.logsumexp(-1, keepdim=True)
    rest = (logs - mass).scatter(-1, index, LOG_ZERO)
    return torch.cat([logs.gather(-1, index), mass], -1), rest
