r"""The alpha-beta family: one formula whose corners are the KLs, Hellinger's distance and the squared log-ratio.

p is the teacher, q the student, as in `kd.objectives.divergence`. Cichocki, Cruces & Amari, Entropy 2011, 13(1), 134;
as an objective ABKD, arXiv 2505.04560.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kd.objectives.divergence import Positive, log_probs, temperature_scale

NEAR_ZERO = 0.01  # an exponent below it loses digits in a^c - b^c; above it expm1 may overflow
LARGEST = 35.0  # nats; a negative exponent's power stops here, so that sums of products of two stay float32 numbers


def alpha_beta(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
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

    Computed as sum [D_s(q, p) - p^alpha D_beta(q, p)] / alpha, D_c(a, b) = (a^c - b^c)/c (log a - log b at c = 0): the
    limits need no formula of their own, and it is exactly 0 at p = q. Exchanging the roles together with alpha and
    beta gives the same divergence, so the larger of the two divides.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    if abs(alpha) < abs(beta):
        p, q, alpha, beta = q, p, beta, alpha
    if alpha == 0.0:
        values = 0.5 * (p - q).square()
    else:
        values = (_difference(q, p, alpha + beta) - _power(p, alpha) * _difference(q, p, beta)) / alpha
    return values.sum(-1) * temperature_scale(temperature, temperature_squared)


def alpha_divergence(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: float = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """[sum p^alpha q^(1 - alpha) - 1] / (alpha (alpha - 1)); phi' = -(1/alpha) (p/q)^alpha.

    alpha -> 1 is forward KL, alpha -> 0 reverse KL, 1/2 four times Hellinger's squared distance, 2 half of chi^2.
    Amari, Differential-Geometrical Methods in Statistics, 1985. It is alpha + beta = 1 in `alpha_beta`.
    """
    return alpha_beta(
        student_logits,
        teacher_logits,
        alpha=alpha,
        beta=1 - alpha,
        temperature=temperature,
        temperature_squared=temperature_squared,
    )


def _power(log: Float[Tensor, "*n V"], exponent: float) -> Float[Tensor, "*n V"]:
    """x^exponent of log x <= 0. Beyond e^LARGEST, where only a negative exponent leads, it is constant."""
    scaled = exponent * log
    return (scaled if exponent >= 0 else scaled.clamp(max=LARGEST)).exp()


def _difference(a_log: Float[Tensor, "*n V"], b_log: Float[Tensor, "*n V"], exponent: float) -> Float[Tensor, "*n V"]:
    """(a^exponent - b^exponent) / exponent, log a - log b at exponent 0."""
    if exponent == 0.0:
        return a_log - b_log
    if abs(exponent) < NEAR_ZERO:
        return _power(b_log, exponent) * torch.expm1(exponent * (a_log - b_log)) / exponent
    return (_power(a_log, exponent) - _power(b_log, exponent)) / exponent
