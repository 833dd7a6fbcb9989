r"""A divergence in which no single id contributes more than a bound.

A divergence of next-token distributions is a sum over ids, sum_v d_v. On text that a student generates for a teacher
with another prompt, a few tokens of style ("wait", "so") have entries many times those of the rest. Bounded, they stop
to dominate: sum_v min(d_v, clip). Entries may be negative, and so may the sum be once large ones are bounded.

With p = (1/2, 1/2) and q = (1/8, 7/8) the entries p log(p/q) are 1/2 log 4 = 0.6931 and 1/2 log(4/7) = -0.2798, so
KL(p || q) = 0.4133; bounded by 0.3 the first counts 0.3:

>>> import torch
>>> from kd.objectives.clipped import clipped_jsd
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.125, 0.875]])
>>> clipped_jsd(q.log(), p.log(), clip=None)[0], clipped_jsd(q.log(), p.log(), clip=0.3)[0]
(tensor([0.4133]), tensor([0.0202]))
"""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import Fraction, Positive, log_probs, mixture
from kd.signals import fading

Rows = tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]  # values and metrics
Bound = Annotated[float, Field(gt=0, le=1e6)]


@fading(lambda clip: clip is not None)
def clipped_jsd(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    beta: Fraction = 0.0,
    clip: Bound | None = 0.05,
    temperature: Positive = 1.0,
) -> Rows:
    """sum_v min(d_v, clip), d_v = beta p log(p/m) + (1 - beta) q log(q/m), m = beta p + (1 - beta) q;
    beta = 0: d_v = p log(p/q). OPSD (arXiv 2601.18734).

    Each entry d_v of the generalised Jensen-Shannon divergence is bounded from above; the gradient of an entry at the
    bound is 0. Logs `clipped`, the share of the teacher's mass on the ids that are at the bound. From random weights
    nearly all of it is there, and little is learnt.

    Args:
        beta: weight of the teacher in the mixture, 0 to 1; 0: forward KL and 1: reverse KL, as in
            `kd.objectives.divergence.generalized_jsd`. 0 in the authors' scripts.
        clip: bound on each id's entry in nats, above 0; null: none, which is `generalized_jsd`. 0.05 in the
            authors' scripts.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten. 1.1 in
            the authors' scripts.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    if beta == 0.0:
        entries = p.exp() * (p - q)
    elif beta == 1.0:
        entries = q.exp() * (q - p)
    else:
        m = mixture(p, q, beta)
        entries = beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)
    bounded = entries if clip is None else entries.clamp(max=clip)
    with torch.no_grad():
        beyond = torch.zeros_like(p) if clip is None else (entries > clip) * p.exp()
        excess = (1 - 2 * beta) * (q.exp() - p.exp()) if beta in (0.0, 1.0) else torch.zeros_like(p)  # as in `kl`
    return (bounded + excess).sum(-1), {"clipped": beyond.sum(-1)}
