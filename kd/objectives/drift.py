r"""On-policy distillation whose tokens weigh less the further their prefix has drifted from the teacher.

a_t = log p(y_t) - log q_old(y_t) is the advantage of a generated token, and D_t = sum_{t' < t} |a_t'| what has
accumulated before it. Late in a response the teacher reads a prefix that it would not have written, and its signal is
worth less.

Of two tokens with a = (log 2, -log 2) the first has nothing before it, the second half of the sum, so that with
gamma = 1/2 the weights are 3/2 and 5/4 and the losses -3/2 log 2 = -1.0397 and 5/4 log 2 = 0.8664:

>>> import torch
>>> from kd.objectives.drift import opd_by_drift
>>> q, p = torch.tensor([[0.25, 0.5]]).log(), torch.tensor([[0.5, 0.25]]).log()
>>> values, metrics = opd_by_drift(q, p, q, q, torch.ones(1, 2, dtype=torch.bool))
>>> values, metrics["weight"]
(tensor([[-1.0397,  0.8664]]), tensor([[1.5000, 1.2500]]))
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kd.objectives.divergence import Fraction, NonNegative
from kd.objectives.policy import Grid, approximate_kl, surrogate, surrogate_metrics, wide

TINY = 1e-8  # nats; the smallest sum that is divided by


def opd_by_drift(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: NonNegative = 0.5,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Grid:
    """-rho w_t a_t, w_t = 1 + gamma (1 - sum_{t' < t} |a_t'| / sum_t' |a_t'|), a = log p - log q_old, rho = q/b.
    Importance-weighted on-policy distillation (arXiv 2606.22600, algorithm 1).

    The first token of a response weighs 1 + gamma, the last close to 1; gamma = 0 is `kd.objectives.policy.opd`.
    Weights are constants, of each response by itself. Logs `weight`, beside the metrics of `opd`.

    Args:
        gamma: amplification of tokens with little drift before them, at least 0; 0: all weigh 1. 0.5 in TRL.
        clip_low: rho counts no further below 1 - clip_low where a is negative, 0 to 1; null: no bound.
        clip_high: rho counts no further above 1 + clip_high where a is positive, at least 0; null: no bound.
    """
    advantages = (wide(teacher_logprobs) - wide(old_logprobs)).detach()
    size = torch.where(mask, advantages.abs(), 0.0)
    before = size.cumsum(-1) - size
    weights = 1 + gamma * (1 - before / size.sum(-1, keepdim=True).clamp(min=TINY))
    weighed = weights * advantages
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    values = surrogate(log_ratio, weighed, clip_low=clip_low, clip_high=clip_high)
    metrics = surrogate_metrics(log_ratio, weighed, clip_low=clip_low, clip_high=clip_high)
    return values, metrics | approximate_kl(student_logprobs, old_logprobs) | {"weight": weights}
