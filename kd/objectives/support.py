r"""Divergences on the ids that the *student* finds likeliest, and how far these are the teacher's.

S is the set of the student's k likeliest ids at a position, m_q = sum_S q and m_p = sum_S p the two models' mass on it.
`targets=topk` holds the teacher's likeliest ids instead. On text that the student generates, S holds the ids that are
likely to come next.

Each term logs how the two supports overlap (Rethinking On-Policy Distillation, arXiv 2604.13016; verl's
`distillation/overlap_ratio`):

    overlap_ratio   share of S that is among the teacher's k likeliest ids, too (overlap@k)
    teacher_mass    m_p, the teacher's mass on the student's likeliest ids
    student_mass    m_q, the student's own

With k = 1, q = (1/2, 1/4, 1/4) and p = (1/4, 1/2, 1/4), S is the first id, and the classes are (1/2, 1/2) and
(1/4, 3/4): KL(q || p) = 1/2 log 2 + 1/2 log(2/3) = 0.1438. The teacher's likeliest id is another one, and its mass on
S is 1/4:

>>> import torch
>>> from kd.objectives.divergence import reverse_kl
>>> from kd.objectives.support import on_student_topk
>>> p, q = torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([[0.5, 0.25, 0.25]])
>>> values, metrics = on_student_topk(q.log(), p.log(), divergence=reverse_kl, k=1)
>>> values, metrics["overlap_ratio"], metrics["teacher_mass"]
(tensor([0.1438]), tensor([0.]), tensor([0.2500]))
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import Positive, log_probs

Rows = tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]  # values and metrics
Ids = Annotated[int, Field(ge=1)]


def on_student_topk(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    divergence: Callable,
    k: Ids = 100,
    tail: Literal["tail_bucket", "renormalise"] = "tail_bucket",
    temperature: Positive = 1.0,
) -> Rows:
    """divergence(q, p) over the student's k likeliest ids S and, as one more class, all others. arXiv 2604.13016.

    With `tail_bucket` an f-divergence is at most that of the whole vocabulary, and equal to it for k >= V. With
    `renormalise` both models are divided by their mass on S, so that the student's mass outside is not learnt, nor
    the teacher's mass there. Gradients flow through the student's probabilities, and not through the choice of S.

    Args:
        divergence: a function of the student's and the teacher's logits with one value for each row, such as
            `kd.objectives.divergence.reverse_kl`.
        k: ids of S, at least 1; from the vocabulary's size on, all of them. 16 in the paper's code, 100 in TRL.
        tail: `tail_bucket` compares the mass outside S as one more class, as SDPO (arXiv 2601.20802) does;
            `renormalise` leaves it out.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
    """
    student, teacher = student_logits, teacher_logits
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    ids = _likeliest(student, k)
    metrics = overlap(student, teacher, ids)
    if ids.shape[-1] == student.shape[-1]:
        return divergence(student, teacher), metrics
    own, theirs = (_classes(z, ids, tail) for z in (student, teacher))
    wide = own.dtype if own.device.type == "mps" else torch.float64  # one class may hold nearly all of the mass
    return divergence(own.to(wide), theirs.to(wide)).to(own.dtype), metrics


def opd_student_topk(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    *,
    k: Ids = 16,
) -> Rows:
    """sum_S w (log q - log p), w = q/m_q over the student's k likeliest ids S; dL = sum_S w (log q - log p) d log q.
    Rethinking On-Policy Distillation (arXiv 2604.13016).

    The advantage log p - log q of every id of S, weighed by the student's renormalised probability, as a policy
    gradient: weights and advantages are constants. At k >= V value and gradient are those of the reverse KL, at k = 1
    those of `opd` for the student's likeliest id. The probabilities in the logarithms are of the whole vocabulary, so
    the value is KL between the renormalised models + log m_q/m_p, and may be negative.

    Args:
        k: ids of S, at least 1; from the vocabulary's size on, all of them. 16 in the authors' code.
    """
    ids = _likeliest(student_logits, k)
    q, p = (log_probs(z).gather(-1, ids) for z in (student_logits, teacher_logits))
    weights, excess = q.detach().softmax(-1), (q - p).detach()
    surrogate = (weights * excess * (q - q.detach())).sum(-1)  # value 0, and the gradient
    return (weights * excess).sum(-1) + surrogate, overlap(student_logits, teacher_logits, ids)


@torch.no_grad()
def overlap(
    student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"], ids: Int[Tensor, "*n K"]
) -> dict[str, Float[Tensor, "*n"]]:
    """The share of the student's likeliest `ids` among as many of the teacher's, and both models' mass on them."""
    among = torch.zeros_like(teacher_logits, dtype=torch.bool)
    among.scatter_(-1, _likeliest(teacher_logits, ids.shape[-1]), True)
    q, p = (log_probs(z).gather(-1, ids).exp().sum(-1) for z in (student_logits, teacher_logits))
    return {
        "overlap_ratio": among.gather(-1, ids).to(q.dtype).mean(-1),
        "teacher_mass": p,
        "student_mass": q,
    }


def _likeliest(logits: Float[Tensor, "*n V"], k: int) -> Int[Tensor, "*n K"]:
    return logits.detach().topk(min(k, logits.shape[-1]), -1).indices


def _classes(logits: Float[Tensor, "*n V"], ids: Int[Tensor, "*n K"], tail: str) -> Float[Tensor, "*n C"]:
    """The logits of the ids and, with a `tail_bucket`, log sum exp of all others."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    held = wide.gather(-1, ids)
    if tail == "renormalise":
        return held
    rest = wide.scatter(-1, ids, -torch.inf)
    nothing = rest.detach().amax(-1, keepdim=True).isneginf()  # log sum exp of nothing has no gradient
    return torch.cat([held, rest.masked_fill(nothing, 0.0).logsumexp(-1, True).masked_fill(nothing, -torch.inf)], -1)
