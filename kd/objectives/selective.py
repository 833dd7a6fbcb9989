"""A divergence on some of the tokens.

`selected` multiplies the values of any divergence by a rule's weights, 0 to 1 a row, constants to the gradient. The
denominator stays that of `reduction`, all response tokens and not those chosen: so terms, micro-batches and ranks
still add up, and a rule that keeps a tenth of the tokens makes the term about ten times smaller (raise `weight` if
that is not wanted).

A rule reads one row, so that the head is still evaluated in chunks. A quantile ("the fifth with the highest entropy")
is not of one row: `hardest` ranks a micro-batch, holds all its logits, and depends on how a window is cut.

Of two students, (1/2, 1/2) has the entropy log 2 = 0.69, above the threshold of 0.5, and (0.9, 0.1) one of 0.33. With
the teacher (1/4, 3/4) the first has KL(p || q) = 1/4 log(1/2) + 3/4 log(3/2) = 0.1308, and the second counts nothing:

>>> import torch
>>> from functools import partial
>>> from kd.objectives.divergence import forward_kl
>>> from kd.objectives.selective import entropy, selected
>>> p, q = torch.tensor([[0.25, 0.75]] * 2), torch.tensor([[0.5, 0.5], [0.9, 0.1]])
>>> selected(q.log(), p.log(), torch.tensor([0, 0]), divergence=forward_kl, rule=partial(entropy, threshold=0.5))
tensor([0.1308, 0.0000])
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import NonNegative, Positive, log_probs

Share = Annotated[float, Field(gt=0, le=1)]


def selected(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    labels: Int[Tensor, "*n"],
    *,
    divergence: Callable,
    rule: Callable,
) -> Float[Tensor, "*n"]:
    """rule(student, teacher, labels) * divergence(student, teacher).

    Args:
        divergence: a function of the student's and the teacher's logits with one value for each row, such as
            `kd.objectives.divergence.forward_kl`.
        rule: a function of both models' logits and the labels with a weight for each row, 0 (dropped) to 1, such as
            `entropy` and `teacher_correctness`.
    """
    with torch.no_grad():
        weights = rule(student_logits, teacher_logits, labels)
    return weights * divergence(student_logits, teacher_logits)


def hardest(
    student_logits: Float[Tensor, "n V"],
    teacher_logits: Float[Tensor, "n V"],
    *,
    divergence: Callable,
    share: Share = 0.6,
) -> Float[Tensor, "*n"]:
    """d 1[d >= d_min], d = divergence(student, teacher), d_min = the smallest of the largest.

    The largest are the `share` of a micro-batch's rows, rounded up; equals of the smallest are kept. Rho-1 (arXiv
    2404.07965) selects tokens so, by how far the loss exceeds a reference model's; a divergence is such an excess.

    Args:
        divergence: a function of the student's and the teacher's logits with one value for each row, such as
            `kd.objectives.divergence.forward_kl`.
        share: share of the rows that is kept, above 0, to 1: all rows. 0.6 is of the order of Rho-1's.
    """
    values = divergence(student_logits, teacher_logits)
    if len(values) == 0:
        return values
    count = max(1, math.ceil(share * len(values) - 1e-9))  # 0.07 x 100 is 7.000000000000001
    bound = values.detach().topk(count).values[-1]
    return values * (values.detach() >= bound)


# ---- rules ----------------------------------------------------------------------------------------------------------


def entropy(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    labels: Int[Tensor, "*n"],
    *,
    of: Literal["student", "teacher"] = "student",
    keep: Literal["above", "below"] = "above",
    threshold: NonNegative,
    width: NonNegative = 0.0,
    temperature: Positive = 1.0,
) -> Float[Tensor, "*n"]:
    """The weights of rows by a model's entropy H, above or below `threshold` nats.

    Args:
        of: the model whose entropy counts, `student` or `teacher`.
        keep: `above` keeps the rows where the model is unsure, `below` those where it is sure.
        threshold: in nats, at least 0; at most log V has an effect. Papers take a quantile instead.
        width: nats, at least 0; 0 keeps or drops, a positive one weighs by sigmoid((H - threshold) / width), or its
            complement.
        temperature: divisor of the model's logits, above 0; 1 leaves them as they are, higher ones raise its entropy.
    """
    log = log_probs(student_logits if of == "student" else teacher_logits, temperature)
    excess = -(log.exp() * log).sum(-1) - threshold
    if keep == "below":
        excess = -excess
    return (excess / width).sigmoid() if width else (excess > 0).to(excess.dtype)


def teacher_correctness(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    labels: Int[Tensor, "*n"],
    *,
    keep: Literal["right", "wrong"] = "right",
) -> Float[Tensor, "*n"]:
    """The weights of rows by the teacher's correctness: the label is (one of) its most probable ids, or is not.

    Args:
        keep: `right` keeps the rows where it is, `wrong` the others.
    """
    best = teacher_logits.amax(-1)
    right = teacher_logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) == best
    dtype = torch.promote_types(teacher_logits.dtype, torch.float32)
    return (right if keep == "right" else ~right).to(dtype)
