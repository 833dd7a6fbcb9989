r"""The alpha-beta family: one formula whose corners are the KLs, Hellinger's distance and the squared log-ratio.

p is the teacher, q the student, as in `kd.objectives.divergence`. Cichocki, Cruces & Amari, Entropy 2011, 13(1), 134;
as an objective ABKD, arXiv 2505.04560. With p = (1/2, 1/2) and q = (1/4, 3/4), alpha = beta = 1 is half the squared
distance, (1/16 + 1/16)/2 = 0.0625, and alpha = 1, beta = 0 is forward KL, 1/2 log(4/3) = 0.1438 nats:

>>> import torch
>>> from kd.objectives.alpha_beta import alpha_beta
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
>>> alpha_beta(q.log(), p.log(), alpha=1.0, beta=1.0), alpha_beta(q.log(), p.log(), alpha=1.0, beta=0.0)
(tensor([0.0625]), tensor([0.1438]))
"""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import Positive, log_probs, temperature_scale
from kd.signals import fading

VERSION = 2  # powers above e^35 are computed, and those beyond float32 have a gradient

Exponent = Annotated[float, Field(ge=-10, le=10)]

ROOM = 18.0  # nats below a dtype's largest number: sums over 200 000 ids, divided by two exponents, are finite


@fading(lambda alpha, beta: 0 < alpha < 1 and beta >= 0.5)
def alpha_beta(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: Exponent = 0.2,
    beta: Exponent = 0.7,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    r"""-1/(alpha beta) sum [p^alpha q^beta - (alpha p^s + beta q^s)/s], s = alpha + beta; where a denominator is 0, the
    limit:

        beta = 0          1/alpha^2 sum [p^alpha log(p^alpha / q^alpha) - p^alpha + q^alpha]
        alpha = 0         the same with p and q, alpha and beta exchanged
        alpha + beta = 0  1/alpha^2 sum [log(q^alpha / p^alpha) + p^alpha / q^alpha - 1]
        alpha = beta = 0  1/2 sum (log p - log q)^2

    phi' = -(1/alpha) q^(beta - 1) (p^alpha - q^alpha), for alpha = 0 q^(beta - 1) log(q/p).
    (1, 0) is forward KL, (0, 1) reverse KL, (1, 1) half the squared distance, (1/2, 1/2) four times Hellinger's squared
    distance, alpha + beta = 1 the alpha-divergence. ABKD's code has 1/alpha in place of 1/alpha^2 in its limits.

    Where q(v) is small and p(v) is not, the gradient at the id's logit is about -q^beta p^alpha / alpha, and ids that
    are unlikely under both have similar ones if s is near 1, which cancel: with the paper's (0.2, 0.7), found on
    students that were tuned before, one with random weights learns almost nothing and its likelihood gets worse
    (validation forward KL 3.46 -> 5.24). Forward KL, beta = 0, has no such factor.

    Any exponents between -10 and 10. With alpha, beta and s between 0 and 1 every power is at most 1. Outside, an id
    that one model all but excludes has a power of 1/p or 1/q: at alpha = 2, beta = -1 a student 40 nats below the
    teacher has value and gradient near e^40, which `optim.clip` scales down together with all other tokens. Powers are
    exact up to e^70 in float32 (e^691 in float64); beyond, value and gradient are those at that bound.

    Computed as sum [D_s(q, p) - p^alpha D_beta(q, p)] / alpha, D_c(a, b) = (a^c - b^c)/c (log a - log b at c = 0), a
    product of powers as one power: the limits need no formula of their own, and it is exactly 0 at p = q. Exchanging
    the roles together with alpha and beta gives the same divergence, so the larger of the two divides.

    Args:
        alpha: exponent of the teacher's probabilities, -10 to 10; larger ones stress errors where p is large. 0.2 in
            the paper for GPT-2, 0.1 for OpenLLaMA.
        beta: exponent of the student's probabilities, -10 to 10; larger ones stress ids that the student already
            finds likely. 0.7 in the paper for GPT-2, 0.8 for OpenLLaMA.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    if abs(alpha) < abs(beta):
        p, q, alpha, beta = q, p, beta, alpha
    if alpha == 0.0:
        values = 0.5 * (p - q).square()
    else:
        s, apart = alpha + beta, q - p
        both = _difference(s * p, s * q, apart, s)
        values = (both - _difference(s * p, s * p + beta * apart, apart, beta)) / alpha
    return values.sum(-1) * temperature_scale(temperature, temperature_squared)


def alpha_divergence(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: Annotated[float, Field(ge=-9, le=10)] = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """[sum p^alpha q^(1 - alpha) - 1] / (alpha (alpha - 1)); phi' = -(1/alpha) (p/q)^alpha.

    alpha -> 1 is forward KL, alpha -> 0 reverse KL, 1/2 four times Hellinger's squared distance, 2 half of chi^2.
    Amari, Differential-Geometrical Methods in Statistics, 1985. It is alpha + beta = 1 in `alpha_beta`, which describes
    values outside of [0, 1].

    Args:
        alpha: -9 to 10; 0 is reverse KL, 1 forward KL. Outside of [0, 1] single ids can dominate the value.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    return alpha_beta(
        student_logits,
        teacher_logits,
        alpha=alpha,
        beta=1 - alpha,
        temperature=temperature,
        temperature_squared=temperature_squared,
    )


def _difference(
    low: Float[Tensor, "*n V"], high: Float[Tensor, "*n V"], apart: Float[Tensor, "*n V"], c: float
) -> Float[Tensor, "*n V"]:
    """(e^high - e^low) / c, high = low + c `apart`; e^low `apart` at c = 0.

    Where both are near each other it is made from their distance, whose digits a difference of powers would lose.
    """
    if c == 0.0:
        return _power(low) * apart
    moved = c * apart
    near = _power(low) * torch.expm1(moved.clamp(-1, 1))
    return torch.where(moved.abs() <= 1, near, _power(high) - _power(low)) / c


def _power(log: Float[Tensor, "*n V"]) -> Float[Tensor, "*n V"]:
    """e^log; beyond the largest power that can be summed, value and gradient are those at that bound."""
    bound = math.log(torch.finfo(log.dtype).max) - ROOM
    return (log - (log - log.clamp(max=bound)).detach()).exp()
