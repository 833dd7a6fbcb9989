"""Distributions over two vocabularies compared by their sorted masses: which token a mass belongs to plays no part.

p is the teacher's next-token distribution over its own U ids, q the student's over its V, at rows that an alignment
sets side by side (`kd.types.Pairs`): the k-th of a response beside the k-th with alignment=none, those that have read
the same text with alignment=spans. A row of the student in no pair has the value 0; averages divide by all rows.

The teacher's (3/4, 1/4) beside the student's (1/2, 1/4, 1/4), filled up with 0: |3/4 - 1/2| + 0 + 1/4 = 1/2.

>>> import torch
>>> from kd.objectives.transport import universal_logit
>>> from kd.types import Pairs
>>> row = torch.tensor([0])
>>> q, p = torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([[0.25, 0.75]])
>>> universal_logit(q.log(), p.log(), Pairs(row, row, row))
tensor([0.5000])
"""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import LOG_ZERO, NonNegative, Positive, log_probs
from kd.types import Pairs

Count = Annotated[int, Field(ge=1)]


def universal_logit(
    student_logits: Float[Tensor, "n V"],
    native_teacher_logits: Float[Tensor, "m U"],
    pairs: Pairs,
    *,
    temperature: Positive = 1.0,
    end_token: bool = True,
) -> Float[Tensor, "*n"]:
    """sum_i |p_(i) - q_(i)|, both sorted from the largest down, the smaller vocabulary filled up with zeros.

    Universal logit distillation (arXiv 2402.12030, eq. 4): the Wasserstein distance where moving mass costs the same
    whatever the tokens. The paper adds the cross-entropy of the labels and weighs this term with 1.5.

    Raises ValueError if end tokens are left out and the alignment does not mark where a response ends.

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        end_token: false: pairs at which either side has its end token are not compared, as in the authors' code (which
            leaves out the last token of a response that was cut, too, and divides by the pairs that are left).
    """
    if not end_token:
        pairs = _inside(pairs)
    q = log_probs(student_logits, temperature)[pairs.student].exp()
    p = log_probs(native_teacher_logits, temperature)[pairs.teacher].exp()
    return over_rows(sorted_difference(p, q), pairs, student_logits)


def multi_level_transport(
    student_logits: Float[Tensor, "n V"],
    native_teacher_logits: Float[Tensor, "m U"],
    pairs: Pairs,
    *,
    top: Count = 50,
    temperature: Positive = 2.0,
    log_weight: NonNegative = 0.1,
    sequence_weight: NonNegative = 0.1,
    epsilon: Positive = 0.1,
    iterations: Count = 20,
) -> Float[Tensor, "*n"]:
    """sum_i |p_i - q_i| + log_weight * -sum_i p_i log q_i + sequence_weight * sum_j P_tj |q_t - p_j|_1.

    Multi-level optimal transport (arXiv 2412.14528). i runs over the `top` ids of each model, ranked by their summed
    probability over the whole response, so that a rank means one token throughout it. The first two are token-level
    costs (absolute and logarithmic); in the third, P is the Sinkhorn plan between the rows of the response, with
    entropy `epsilon` and mass 1 in each row, so that a row's value is what it costs to move it onto the teacher's.

    The authors' code softens in the third term alone, divides logits by their standard deviation first, applies softmax
    to the probabilities again for the second and third, exchanges p and q in the second, and weighs the sum of a
    response's third term with 1e-4.

    Args:
        top: ids of each model that are compared, at least 1; from the vocabulary's size on: all.
        temperature: divisor of both models' logits in all three terms, above 0; 1 leaves them as they are.
        log_weight: weight of the logarithmic cost, at least 0; 0: without it.
        sequence_weight: weight of the cost between rows, at least 0; 0: without it.
        epsilon: entropy of the plan, above 0, in units of the cost (0 to 2); the smaller, the nearer to the cheapest
            plan and the more iterations it takes, and large ones spread every row evenly.
        iterations: rounds of Sinkhorn's normalisation, at least 1.
    """
    q, p = log_probs(student_logits, temperature), log_probs(native_teacher_logits, temperature)
    values = student_logits.new_zeros(len(student_logits), dtype=q.dtype)
    for sequence in pairs.sequence.unique().tolist():
        own = pairs.sequence == sequence
        rows = pairs.student[own]
        q_log, p_log = (_ranked(z, top) for z in (q[rows], p[pairs.teacher[own]]))
        width = min(q_log.shape[1], p_log.shape[1])
        q_log, p_log = q_log[:, :width], p_log[:, :width]
        token = (p_log.exp() - q_log.exp()).abs().sum(-1) - log_weight * (p_log.exp() * q_log).sum(-1)
        cost = torch.cdist(q_log.exp(), p_log.exp().to(q_log.dtype), p=1)
        moved = (sinkhorn(cost, epsilon=epsilon, iterations=iterations) * cost).sum(-1)
        values = values.index_add(0, rows, token + sequence_weight * moved)
    return values


def sorted_difference(p: Float[Tensor, "P U"], q: Float[Tensor, "P V"]) -> Float[Tensor, " P"]:
    """sum_i |p_(i) - q_(i)| of masses sorted from the largest down; the shorter is filled up with zeros."""
    p, q = (x.sort(-1, descending=True).values for x in (p, q))
    shared = min(p.shape[1], q.shape[1])
    rest = p[:, shared:].sum(-1) + q[:, shared:].sum(-1)
    return (p[:, :shared] - q[:, :shared]).abs().sum(-1) + rest


def sinkhorn(cost: Float[Tensor, "N M"], *, epsilon: float, iterations: int) -> Float[Tensor, "N M"]:
    """exp((u_i + v_j - cost_ij) / epsilon) whose rows each sum to 1, and whose columns each to N / M.

    Rows and columns are normalised in turn (Cuturi, arXiv 1306.0895), in log space, rows last: those are exact.
    """
    plan = -cost / epsilon
    for _ in range(iterations):
        plan = plan - plan.logsumexp(0, keepdim=True)
        plan = plan - plan.logsumexp(1, keepdim=True)
    return plan.exp()


def over_rows(values: Float[Tensor, " P"], pairs: Pairs, student_logits: Float[Tensor, "n V"]) -> Float[Tensor, "*n"]:
    """The values of pairs at the student's rows, 0 at those in no pair."""
    return values.new_zeros(len(student_logits)).index_add(0, pairs.student, values)


def _inside(pairs: Pairs) -> Pairs:
    """The pairs at which no response ends."""
    if pairs.ends is None:
        raise ValueError(
            "end_token=false, but the alignment does not mark where a response ends; set `ends` in its pairs"
        )
    kept = ~pairs.ends
    return Pairs(pairs.student[kept], pairs.teacher[kept], pairs.sequence[kept], pairs.ends[kept])


def _ranked(log: Float[Tensor, "r V"], top: int) -> Float[Tensor, "r K"]:
    """The columns of the ids of most probability over all rows, most first."""
    with torch.no_grad():
        ids = log.exp().sum(0).topk(min(top, log.shape[1])).indices
    return log[:, ids].clamp(min=LOG_ZERO)
