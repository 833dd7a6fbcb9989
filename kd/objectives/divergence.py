r"""Divergences between the teacher's and the student's next-token distributions, one value per position.

Throughout, p is the teacher, q the student, both after softmax(z / temperature) in float32 (or wider), values
in nats. `temperature_squared=True` multiplies by temperature^2, which keeps gradients at the scale of
temperature 1 (Hinton et al., arXiv 1503.02531, section 2).

With p = (1/2, 1/2) and q = (1/4, 3/4), KL(p || q) = 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3) = 0.1438, and the total
variation is (1/4 + 1/4)/2 = 0.25:

>>> import torch
>>> from kd.objectives.divergence import forward_kl, total_variation
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
>>> forward_kl(q.log(), p.log()), total_variation(q.log(), p.log())
(tensor([0.1438]), tensor([0.2500]))

For L = sum_i phi(p_i, q_i) the gradient is dL/dz_i = q_i (phi'_i - sum_j q_j phi'_j), phi' = d phi / d q; each
docstring gives phi' up to constants.

An id at logit -inf in both models contributes 0; where only one of them excludes it, its log-probability is
taken to be `LOG_ZERO`.
"""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd.signals import fading

LOG_ZERO = -100.0  # nats; e^-100 is below the smallest normal float32, so it carries no mass

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # at 1 both sides of a skewed divergence are the same
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]  # logits times or over it, and its square, stay in float32
NonNegative = Annotated[float, Field(ge=0, le=1e6)]


def log_probs(logits: Float[Tensor, "*n V"], temperature: float = 1.0) -> Float[Tensor, "*n V"]:
    """log softmax(logits / temperature) in at least float32, -inf replaced by `LOG_ZERO`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = (wide / temperature if temperature != 1.0 else wide).log_softmax(-1)
    if values.device.type == "cpu" and (values.detach().amin(-1) > -math.inf).all():
        return values  # this check costs a tenth of replacing; on a GPU it would synchronise
    return torch.where(values.isneginf(), LOG_ZERO, values)


def kl(p_log: Float[Tensor, "*n V"], q_log: Float[Tensor, "*n V"]) -> Float[Tensor, "*n"]:
    """KL(p || q) = sum_v p(v) [log p(v) - log q(v)], for p and q that each sum to 1.

    Summed as p (log p - log q) - p + q, which is never negative: without it the rounding of both log
    normalisers (5e-7 at 50k ids) exceeds a small divergence. As sum_v (q - p) = 0 whatever
    the logits, it has no gradient.
    """
    p = p_log.exp()
    with torch.no_grad():
        excess = q_log.exp().sub_(p)
    return (p * (p_log - q_log)).add_(excess).sum(-1)


def mixture(p_log: Float[Tensor, "*n V"], q_log: Float[Tensor, "*n V"], p_weight: float) -> Float[Tensor, "*n V"]:
    """log(w p + (1 - w) q), in log space: a product of underflowed probabilities has no gradient."""
    if p_weight == 0.0:
        return q_log
    if p_weight == 1.0:
        return p_log
    return torch.logaddexp(p_log + math.log(p_weight), q_log + math.log1p(-p_weight))


def temperature_scale(temperature: float, temperature_squared: bool) -> float:
    """temperature^2 if `temperature_squared`, else 1."""
    return temperature**2 if temperature_squared else 1.0


def cross_entropy(student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log q(y_t), y_t the label; the loss of SFT, and of SeqKD (arXiv 1606.07947) on the teacher's text."""
    return -student_logprobs


def forward_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(p || q); phi' = -p/q, so dL/dz = q - p. Word-level KD (Kim & Rush, arXiv 1606.07947, eq. 6).

    The value is the divergence, 0 at p = q, and not the cross-entropy that several codebases report under
    this name (`soft_cross_entropy`: larger by the teacher's entropy, same gradient).

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    return kl(p, q) * temperature_scale(temperature, temperature_squared)


def soft_cross_entropy(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """-sum_v p(v) log q(v); phi' = -p/q. Hinton et al. (arXiv 1503.02531), and what DistiLLM's, ABKD's and TAID's code
    reports as forward KL.

    It is H(p) + KL(p || q): the gradient is that of `forward_kl`, the value at p = q is the teacher's entropy.

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    return -(p.exp() * q).sum(-1) * temperature_scale(temperature, temperature_squared)


def reverse_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(q || p); phi' = log(q/p). The single-step term of MiniLLM (arXiv 2306.08543).

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    return kl(q, p) * temperature_scale(temperature, temperature_squared)


def symmetric_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    reverse: Fraction = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """(1 - r) KL(p || q) + r KL(q || p), r = `reverse`; phi' = r log(q/p) - (1 - r) p/q.

    r = 1/2 is half of Jeffreys' divergence, the only value at which p and q may be exchanged.

    Args:
        reverse: share of the reverse KL, 0 to 1; 0: forward KL, 1: reverse KL. 0.9 in DistiLLM's baseline.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    value = (1 - reverse) * kl(p, q) + reverse * kl(q, p)
    return value * temperature_scale(temperature, temperature_squared)


def generalized_jsd(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    beta: Fraction = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; phi' = (1 - beta) log(q/m).

    GKD (arXiv 2306.13649, eq. 1): beta weights the *teacher*. beta = 0 is forward KL and beta = 1 reverse KL, as
    GKD has it; note the jump, for the interior formula vanishes at both ends (JSD / beta -> forward KL as
    beta -> 0, JSD / (1 - beta) -> reverse KL as beta -> 1).

    Args:
        beta: weight of the teacher in the mixture, 0 to 1, with the jumps above at 0 and 1. The paper tries 0, 0.1,
            0.5, 0.9 and 1.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    scale = temperature_scale(temperature, temperature_squared)
    if beta == 0.0:
        return kl(p, q) * scale
    if beta == 1.0:
        return kl(q, p) * scale
    m = mixture(p, q, beta)
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) * scale


def skew_forward_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: BelowOne = 0.1,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(p || m), m = alpha p + (1 - alpha) q; phi' = -(1 - alpha) p/m. DistiLLM (arXiv 2402.03898, eq. 5).

    The gradient is bounded by (1 - alpha)/alpha, which is the purpose of the skew.

    Args:
        alpha: share of the teacher in the mixture, 0 to below 1; 0: forward KL, near 1 the value vanishes. 0.1 in the
            paper.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    return kl(p, mixture(p, q, alpha)) * temperature_scale(temperature, temperature_squared)


def skew_reverse_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    alpha: BelowOne = 0.1,
    mixture_gradient: bool = True,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(q || m), m = (1 - alpha) p + alpha q. DistiLLM (arXiv 2402.03898, eq. 6).

    phi' = log(q/m) - alpha q/m with the gradient through the mixture (DistiLLM), log(q/m) without it
    (`mixture_gradient=False`, as DistiLLM-2's code has it, arXiv 2503.07067).

    Args:
        alpha: share of the student in the mixture, 0 to below 1; 0: reverse KL, near 1 the value vanishes. 0.1 in the
            paper.
        mixture_gradient: differentiate through the student in the mixture, too; false: the mixture is a constant.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    m = mixture(p, q if mixture_gradient else q.detach(), 1 - alpha)
    return kl(q, m) * temperature_scale(temperature, temperature_squared)


@fading(lambda: True)
def total_variation(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """1/2 sum_v |p(v) - q(v)|, between 0 and 1; phi' = sign(q - p)/2. f-Distill (arXiv 2307.15190).

    The gradient at an id's logit is at most q(v): an id that is likely to the teacher and unlikely to the student has
    almost none, and those of ids that are unlikely to both cancel. From random weights the likelihood gets worse than
    uniform (validation forward KL 3.24 -> 6.17); it is for students that are near already.

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature).exp(), log_probs(student_logits, temperature).exp()
    return (p - q).abs().sum(-1) * (0.5 * temperature_scale(temperature, temperature_squared))
