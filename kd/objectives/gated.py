r"""Forward KL where the teacher is unsure, reverse KL where it is sure.

Reverse KL seeks one of the teacher's modes. Where the teacher has several, that takes diversity away, and its sampled
estimate has the most variance; forward KL covers them all. The gate g is 0 or 1 at a position, by the teacher's
entropy H(p), and a constant to the gradient.

With the teacher (1/2, 1/2), H = log 2 = 0.69, and the student (1/4, 3/4), the reverse KL is 1/4 log(1/2) +
3/4 log(3/2) = 0.1308 and the forward KL 1/2 log 2 + 1/2 log(2/3) = 0.1438:

>>> import torch
>>> from kd.objectives.gated import entropy_gated_kl
>>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
>>> entropy_gated_kl(q.log(), p.log(), threshold=0.5)[0], entropy_gated_kl(q.log(), p.log(), threshold=0.7)[0]
(tensor([0.2747]), tensor([0.1308]))
>>> entropy_gated_kl(q.log(), p.log(), threshold=0.5, replace=True)[0]
tensor([0.1438])
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kd.objectives.divergence import NonNegative, Positive, kl, log_probs

Rows = tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]  # values and metrics


def entropy_gated_kl(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    threshold: NonNegative = 0.8,
    width: NonNegative = 0.0,
    forward: NonNegative = 1.0,
    replace: bool = False,
    temperature: Positive = 1.0,
) -> Rows:
    """KL(q || p) + g KL(p || q), g = 1[H(p) > threshold]. Entropy-aware on-policy distillation (arXiv 2603.07079).

    At a threshold of log V or more it is the reverse KL; with `replace` and a threshold below every H(p) the forward
    KL. Logs `gate`, the mean of g, through which nothing learns. dL/dz = q (log q - log p - KL(q || p)) + g (q - p).

    Args:
        threshold: of the teacher's entropy in nats, at least 0; at most log V has an effect. 0.8 is ours.
        width: nats, at least 0; 0 switches at the threshold, a positive one has g = sigmoid((H - threshold) / width).
        forward: weight of the forward KL where the gate is open, at least 0; 1 as it stands in the formula.
        replace: whether the forward KL stands in place of the reverse KL where the gate is open, and not beside it.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    with torch.no_grad():
        excess = -(p.exp() * p).sum(-1) - threshold
        gate = (excess / width).sigmoid() if width else (excess > 0).to(excess.dtype)
    reverse = kl(q, p) * (1 - gate) if replace else kl(q, p)
    return reverse + forward * gate * kl(p, q), {"gate": gate}
