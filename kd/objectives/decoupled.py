"""Decoupled distillation: the label's probability and the distribution over the other ids, each with its own weight.

With p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2) and the label 0, the label's part is KL((1/2, 1/2) || (1/4, 3/4)) =
1/2 log(4/3) and the others' KL((1/2, 1/2) || (1/3, 2/3)) = 1/2 log(9/8); with alpha 1 and beta 0.5 together 0.1733:

>>> import torch
>>> from kd.objectives.decoupled import dkd
>>> p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
>>> dkd(q.log(), p.log(), torch.tensor([0]), alpha=1.0, beta=0.5)
tensor([0.1733])
"""

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
    multiplies by temperature^2.

    Args:
        alpha: weight of the label's binary divergence, at least 0; 0: the other ids alone. 1 in the paper.
        beta: weight of the divergence among the other ids, at least 0; 0: the label alone. 8 in the paper on
            CIFAR-100, 0.5 in TAID's baseline for language models.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
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
