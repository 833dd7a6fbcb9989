"""Forward and reverse KL, mixed by how the two distributions differ; p is the teacher, q the student.

The weights are constants to the gradient. With p = (1/2, 1/2) and q = (1/4, 3/4), ToDi's value is that of
KL(p || q) + KL(q || p) = sum (p - q) log(p/q) = 1/4 log 2 - 1/4 log(2/3) = 1/4 log 3 = 0.2747 nats:

>>> import torch
>>> from kd.objectives.adaptive import todi
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
>>> todi(q.log(), p.log())
tensor([0.2747])
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kd.objectives.divergence import Fraction, Positive, kl, log_probs, temperature_scale

FIRST_LOOK = 64  # ids; most rows have half of their mass there, and sorting 50k ids costs as much as 100 log-softmaxes


def adaptive_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    mu: Fraction = 0.5,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """w KL(p || q) + (1 - w) KL(q || p), w = g_head / (g_head + g_tail); phi' = (1 - w) log(q/p) - w p/q.

    AKL (arXiv 2404.02657): where the gap g = sum |p - q| lies on the teacher's head, forward KL, which is good at
    heads. The head is the teacher's most probable ids that together have at most `mu` of its mass, and the most
    probable one in any case (the authors' code; DSKD's port puts the id that crosses mu into the head too). Ids as
    probable as the last one of the head belong to it, so that their order does not matter.

    Args:
        mu: share of the teacher's mass that is its head, 0 to 1; 0: the most probable ids alone, 1: all ids, so that
            the term is forward KL. 0.5 in the paper.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    with torch.no_grad():
        teacher = p.exp()
        gap = (teacher - q.exp()).abs_()
        head = gap.masked_fill(teacher < _last_of_head(teacher, mu), 0.0).sum(-1)
        weight = head / gap.sum(-1).clamp_min(torch.finfo(gap.dtype).tiny)  # 0 at p = q, where both KLs are 0
    value = weight * kl(p, q) + (1 - weight) * kl(q, p)
    return value * temperature_scale(temperature, temperature_squared)


def todi(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """sum_v [w p log(p/q) + (1 - w) q log(q/p)], w = sigmoid(log(p/q)) of each id; ToDi, arXiv 2505.16297.

    phi' = (1 - w) (1 + log(q/p)) - w p/q: ids that the student underrates (w near 1) learn by forward KL, those it
    overrates by reverse KL. As w = p/(p + q), the *value* is KL(p || q) + KL(q || p); the gradient is not.

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    ratio = p - q
    forward = ratio.detach().sigmoid()
    values = ratio * (forward * p.exp() - (1 - forward) * q.exp())
    return values.sum(-1) * temperature_scale(temperature, temperature_squared)


def _last_of_head(p: Float[Tensor, "*n V"], mu: float) -> Float[Tensor, "*n 1"]:
    """The smallest probability in each row's head."""
    if mu == 1.0:  # a rounded sum of all ids may exceed 1
        return p.amin(-1, keepdim=True)
    for k in _looks(p.shape[-1]):
        top = p.topk(k, -1).values
        mass = top.cumsum(-1)
        if (mass[..., -1] > mu).all():
            break
    size = (mass <= mu).sum(-1, keepdim=True).clamp_min(1)
    return top.gather(-1, size - 1)


def _looks(vocabulary: int) -> list[int]:
    """Numbers of most probable ids to search: 64, 512, 4096, ... and at last all."""
    looks = [FIRST_LOOK * 8**i for i in range(8)]
    return [k for k in looks if k < vocabulary] + [vocabulary]
