r"""Reverse KL from sampled tokens: three estimators, and the gradient of each.

y ~ q, r = log q(y) - log p(y). Their values, and the gradients that they have *in expectation* when they are a direct
loss, whose samples are constants (Schulman, Approximating KL Divergence, 2020):

    k1 = r              unbiased value          gradient 0: learns nothing
    k2 = r^2/2          biased value            gradient of KL(q || p)
    k3 = e^-r - 1 + r   unbiased, not negative  gradient of KL(p || q): the other direction

-r as the reward of a policy gradient (`kd.objectives.policy.opd`) has the gradient of KL(q || p), too, and so has the
sum over the vocabulary (`kd.objectives.divergence.reverse_kl`), which needs no estimator. All of this is about one
token after a given prefix: only returns hold what a token does to the prefixes that follow.

With q(y) = 1/2 and p(y) = 1/4, r = log 2 = 0.6931, r^2/2 = 0.2402 and e^-r - 1 + r = log 2 - 1/2 = 0.1931:

>>> import torch
>>> from kd.objectives.estimators import k1, k2, k3
>>> q, p = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
>>> k1(q, p), k2(q, p), k3(q, p)
(tensor([0.6931]), tensor([0.2402]), tensor([0.1931]))
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor

from kd.objectives.divergence import Positive
from kd.objectives.policy import MAX_LOG_RATIO, drawn_elsewhere, wide

Estimator = Literal["k1", "k2", "k3"]

NO_SIGNAL = (
    "k1 as a direct loss has an expected gradient of zero, so nothing would be learnt; take k2, whose gradient is that "
    "of reverse KL, or objective=opd, where k1 is the reward of a policy gradient"
)
OTHER_DIRECTION = (
    "k3 as a direct loss has the expected gradient of forward KL, the wrong direction; take k2, whose gradient is that "
    "of reverse KL, or objective=fkl if forward KL is what you want"
)


def _learns(estimator: Estimator) -> Estimator:
    if estimator == "k1":
        raise ValueError(NO_SIGNAL)
    return estimator


def _learns_reverse_kl(estimator: Estimator) -> Estimator:
    if estimator == "k3":
        raise ValueError(OTHER_DIRECTION)
    return _learns(estimator)


def k1(student_logprobs: Float[Tensor, "*n"], other_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """r = log q(y) - log p(y); unbiased for KL(q || p)."""
    return wide(student_logprobs) - wide(other_logprobs)


def k2(student_logprobs: Float[Tensor, "*n"], other_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """r^2/2, r = log q(y) - log p(y); biased, equal to KL(q || p) to second order in q - p."""
    return k1(student_logprobs, other_logprobs).square() / 2


def k3(student_logprobs: Float[Tensor, "*n"], other_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """e^-r - 1 + r, r = log q(y) - log p(y), from -20 on; unbiased for KL(q || p), never negative."""
    r = k1(student_logprobs, other_logprobs).clamp(min=-MAX_LOG_RATIO)
    return torch.expm1(-r) + r


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def sampled_reverse_kl(
    student_logprobs: Float[Tensor, "*n"],
    teacher_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    *,
    estimator: Annotated[Estimator, AfterValidator(_learns_reverse_kl)] = "k2",
    cap: Positive = 3.0,
) -> Float[Tensor, "*n"]:
    """w (log q(y) - log p(y))^2/2, y ~ b, w = min(q(y)/b(y), cap); E dL/dz = that of KL(q || p).
    KDRL (arXiv 2506.02208) calls it k2.

    A direct loss on samples. The value is biased; the expected gradient is that of
    `kd.objectives.divergence.reverse_kl` exactly, but for what `cap` takes from it. w is a constant, and 1 where the
    student as it is now drew at temperature 1, which is all that the paper has.

    Raises ValueError for the estimators k1 and k3, which do not learn reverse KL (see above).

    Args:
        estimator: k2, the only one of the three whose expected gradient as a direct loss is that of reverse KL.
        cap: bound on w, above 0; 3 as TRL has it for such weights, and large values leave w as it is.
    """
    weights = drawn_elsewhere(student_logprobs, behaviour_logprobs, cap)
    return weights * ESTIMATORS[_learns_reverse_kl(estimator)](student_logprobs, teacher_logprobs)


def kl_to_reference(
    student_logprobs: Float[Tensor, "*n"],
    reference_logprobs: Float[Tensor, "*n"],
    *,
    estimator: Annotated[Estimator, AfterValidator(_learns)] = "k3",
) -> Float[Tensor, "*n"]:
    """q_ref(y)/q(y) - 1 - log q_ref(y)/q(y), y ~ q, q_ref the starting point; E dL/dz = that of KL(q_ref || q).
    GRPO's penalty (arXiv 2402.03300, eq. 4).

    As the paper has it: k3, whose expected gradient is that of *forward* KL from the reference, though its value is
    one of KL(q || q_ref). Both are 0 where the student has not moved. `estimator="k2"` has the gradient of reverse KL.

    Raises ValueError for the estimator k1, which learns nothing.

    Args:
        estimator: k3, in expectation the gradient of forward KL from the reference, as in the paper; or k2, that of
            reverse KL.
    """
    return ESTIMATORS[_learns(estimator)](student_logprobs, reference_logprobs)
