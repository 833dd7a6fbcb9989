"""Losses on two responses to one prompt, the preferred one first; one value for each pair.

w is the preferred response and l the other; q is the student, r the reference (the student's starting point), p the
teacher. log q(y) = sum_t log q(y_t) over the response's tokens, |y| is their number; prompts and padding never count.
The order of a pair is decided where it is made: by people, a judge, a teacher's scores, or the responses' sources.

A paper's likelihood of the preferred response is a term of its own (`chosen_likelihood`), its coefficient the weight.

Beside its value each term on pairs logs, in TRL's names, means over pairs:

    rewards/chosen, rewards/rejected  the implicit rewards beta log q(w)/r(w) and beta log q(l)/r(l), as the term
                                      compares them: r = p against the teacher, r = 1 without a reference, each divided
                                      by its response's length where the term does so, beta = 1 where it has none
    rewards/margins                   their difference
    rewards/accuracies                1 where that is positive
    logps/chosen, logps/rejected      log q(w) and log q(l), divided by lengths where the term does so

With q(w) = 3/4, q(l) = 1/4 and r = 1/2 for both, responses of one token, h = log(3/2) - log(1/2) = log 3. With beta 1
the loss of DPO is -log sigma(log 3) = log(4/3) = 0.2877, and the margin of the rewards log 3 = 1.0986:

>>> import torch
>>> from kd.objectives.preference import dpo
>>> q, r, mask = torch.tensor([[0.75], [0.25]]), torch.tensor([[0.5], [0.5]]), torch.tensor([[True], [True]])
>>> values, metrics = dpo(q.log(), r.log(), mask, group_size=2, beta=1.0)
>>> values, metrics["rewards/margins"]
(tensor([0.2877]), tensor([1.0986]))
"""

from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kd.objectives.divergence import NonNegative, Positive, log_probs
from kd.signals import of_groups

NoiseRate = Annotated[float, Field(ge=0, lt=0.5)]

Pairs = tuple[Float[Tensor, " P"], dict[str, Float[Tensor, " P"]]]  # values and metrics

CERTAIN = -1e-6  # nats; the odds of a response that is likelier than that have no bound


def response_logprobs(
    logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, length_normalised: bool = False
) -> Float[Tensor, " B"]:
    """log q(y) of each response in at least float32, per token if `length_normalised`; 0 for one without tokens."""
    wide = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    total = wide.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if length_normalised else total


def check_pair(group_size: int) -> None:
    """Raises ValueError for other than two responses to a prompt."""
    if group_size != 2:
        raise ValueError(
            f"group_size={group_size}: a preference is between two responses to one prompt, the preferred one first; "
            "give each record two, or take an objective that ranks more (rrhf, pro, listwise)"
        )


def paired(values: Float[Tensor, " B"], group_size: int) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """The values of the preferred responses, and those of the others.

    Raises ValueError if prompts have not two responses each.
    """
    check_pair(group_size)
    preferred, other = values.view(-1, 2).unbind(-1)
    return preferred, other


def compared(
    student_logprobs: Float[Tensor, "B T"],
    base_logprobs: Float[Tensor, "B T"] | None,
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    beta: float = 1.0,
    length_normalised: bool = False,
) -> Pairs:
    """h = log q(w)/r(w) - log q(l)/r(l), r the base; without one log q(w) - log q(l). And the metrics, see above.

    beta: of the rewards alone.
    """
    own = score = response_logprobs(student_logprobs, mask, length_normalised=length_normalised)
    if base_logprobs is not None:
        score = own - response_logprobs(base_logprobs, mask, length_normalised=length_normalised)
    preferred, other = paired(score, group_size)
    return preferred - other, pair_metrics(beta * score, own, group_size)


@torch.no_grad()
def pair_metrics(
    rewards: Float[Tensor, " B"], logprobs: Float[Tensor, " B"], group_size: int
) -> dict[str, Float[Tensor, " P"]]:
    """The metrics of pairs, see above, from implicit rewards and log-probabilities of responses."""
    chosen, rejected = paired(rewards, group_size)
    logps = paired(logprobs, group_size)
    return {
        **{"rewards/chosen": chosen, "rewards/rejected": rejected},
        **{"rewards/margins": chosen - rejected, "rewards/accuracies": (chosen > rejected).to(chosen)},
        **{"logps/chosen": logps[0], "logps/rejected": logps[1]},
    }


# ---- against a reference ---------------------------------------------------------------------------------------------


@of_groups(check_pair, in_order=True)
def dpo(
    student_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    beta: Positive = 0.1,
    label_smoothing: NoiseRate = 0.0,
) -> Pairs:
    """-log sigma(beta h), h = log q(w)/r(w) - log q(l)/r(l); dL/dh = -beta sigma(-beta h). DPO (arXiv 2305.18290,
    eq. 7).

    Where student and reference are equal, the value is log 2, and the gradient -beta/2 of log q(w) - log q(l).

    Args:
        beta: inverse temperature of the margin, above 0; the larger, the nearer to a hinge at 0, and the less the
            student moves from the reference. 0.1 in the paper.
        label_smoothing: share e of pairs whose order is taken to be wrong, 0 to below 1/2: (1 - e) of the loss + e of
            that with -h; 0: every order is right, as in the paper.
    """
    difference, metrics = compared(student_logprobs, reference_logprobs, mask, group_size, beta=beta)
    h = beta * difference
    return -(1 - label_smoothing) * functional.logsigmoid(h) - label_smoothing * functional.logsigmoid(-h), metrics


@of_groups(check_pair, in_order=True)
def ipo(
    student_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    tau: Positive = 0.1,
    length_normalised: bool = True,
) -> Pairs:
    """(h - 1/(2 tau))^2, h = log q(w)/r(w) - log q(l)/r(l); dL/dh = 2 h - 1/tau. IPO (arXiv 2310.12036, eq. 17).

    Unlike DPO's, the margin is not driven beyond 1/(2 tau).

    Args:
        tau: strength of the regularisation, above 0; the target of the margin is 1/(2 tau), so large ones keep the
            student at the reference.
        length_normalised: each log-ratio divided by its response's length. Eq. 17 has the plain sums (false), whose
            squares grow with length; TRL reports from the authors that the paper's results are those of the means
            (true).
    """
    settings: dict[str, Any] = {"beta": tau, "length_normalised": length_normalised}
    h, metrics = compared(student_logprobs, reference_logprobs, mask, group_size, **settings)
    return (h - 1 / (2 * tau)).square(), metrics


@of_groups(check_pair, in_order=True)
def rso(
    student_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    gamma: Positive = 0.1,
) -> Pairs:
    """max(0, 1 - gamma h), h = log q(w)/r(w) - log q(l)/r(l); dL/dh = -gamma where it is positive. RSO's hinge
    (arXiv 2309.06657), which other libraries call DPO with a hinge, or SLiC.

    Args:
        gamma: inverse of the margin at which a pair stops learning, above 0, per nat: h = 1/gamma. 0.1 in TRL, as beta.
    """
    h, metrics = compared(student_logprobs, reference_logprobs, mask, group_size, beta=gamma)
    return (1 - gamma * h).relu(), metrics


def apo_zero(
    student_logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    *,
    beta: Positive = 0.1,
    threshold: float = 0.5,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
    """1 - sigma(beta z) or sigma(beta z), z = log q(y)/r(y); the first if reward > threshold. APO-zero (arXiv
    2408.06266, eq. 7), taken over single responses: no pairs are needed.

    It is KTO (arXiv 2402.01306) with its reference point z_0 at 0. KTO estimates z_0 = KL(q || r) on responses
    to other prompts, which no batch holds.

    Logged are means over all responses: `rewards` (beta z), `accuracies` (1 where z > 0 exactly if reward > threshold)
    and `logps`.

    Args:
        beta: inverse temperature of z, above 0; the larger, the sooner a response that has moved stops learning.
        threshold: the reward above which a response is desirable, in units of the reward.
        desirable_weight: weight of the desirable responses, at least 0; 0: the others alone.
        undesirable_weight: weight of the others, at least 0; 0: the desirable ones alone.
    """
    own, desirable = response_logprobs(student_logprobs, mask), rewards > threshold
    z = own - response_logprobs(reference_logprobs, mask)
    good, bad = (-beta * z).sigmoid(), (beta * z).sigmoid()
    metrics = {"rewards": beta * z, "accuracies": ((z > 0) == desirable).to(z), "logps": own}
    return torch.where(desirable, desirable_weight * good, undesirable_weight * bad), metrics


# ---- against the teacher ---------------------------------------------------------------------------------------------


@of_groups(check_pair, in_order=True)
def dpkd(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    beta: Positive = 0.1,
    length_normalised: bool = False,
) -> Pairs:
    """-log sigma(beta h), h = log q(w)/p(w) - log q(l)/p(l); dL/dh = -beta sigma(-beta h). DPKD (arXiv 2406.19774).

    It is DPO with the teacher as reference, w generated by the teacher and l by the student.

    Args:
        beta: inverse temperature of the margin, above 0; the larger, the nearer to a hinge at 0, and the less the
            student moves from the teacher.
        length_normalised: take the mean over the response's tokens; false: the sum.
    """
    settings: dict[str, Any] = {"beta": beta, "length_normalised": length_normalised}
    h, metrics = compared(student_logprobs, teacher_logprobs, mask, group_size, **settings)
    return -functional.logsigmoid(beta * h), metrics


def dpkd_token(
    student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"], *, beta: Positive = 0.1
) -> tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]:
    """-log sigma(beta [log q(w)/p(w) - log q(l)/p(l)]), w = argmax p, l = argmax q; DPKD's code trains it at every
    token of the given text (arXiv 2406.19774 has whole responses: `dpkd`).

    Where both models' best ids agree, the value is log 2 and the gradient zero: elsewhere z_w rises and z_l falls by
    beta sigma(-beta h).

    Logged are means over tokens: `rewards/margins` (beta h) and `rewards/accuracies` (1 where h > 0).

    Args:
        beta: inverse temperature of the margin, above 0; the larger, the nearer to a hinge at 0, and the less the
            student moves from the teacher.
    """
    p, q = log_probs(teacher_logits), log_probs(student_logits)
    w, l = p.argmax(-1, keepdim=True), q.argmax(-1, keepdim=True)  # noqa: E741
    h = _difference(q, w, l) - _difference(p, w, l)
    return -functional.logsigmoid(beta * h), {"rewards/margins": beta * h, "rewards/accuracies": (h > 0).to(h)}


def _difference(log: Float[Tensor, "*n V"], first: Int[Tensor, "*n 1"], second: Int[Tensor, "*n 1"]) -> Tensor:
    return (log.gather(-1, first) - log.gather(-1, second)).squeeze(-1)


# ---- without a reference ---------------------------------------------------------------------------------------------


@of_groups(check_pair, in_order=True)
def cpo(
    student_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group_size: int, *, beta: Positive = 0.1
) -> Pairs:
    """-log sigma(beta h), h = log q(w) - log q(l); dL/dh = -beta sigma(-beta h). CPO (arXiv 2401.08417, eq. 3).

    Args:
        beta: inverse temperature of the margin, above 0; the larger, the nearer to a hinge at 0. 0.1 in the paper.
    """
    h, metrics = compared(student_logprobs, None, mask, group_size, beta=beta)
    return -functional.logsigmoid(beta * h), metrics


@of_groups(check_pair, in_order=True)
def simpo(
    student_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    beta: Positive = 2.5,
    gamma: NonNegative = 1.375,
) -> Pairs:
    """-log sigma(beta h - gamma), h = log q(w)/|w| - log q(l)/|l|; dL/dh = -beta sigma(gamma - beta h). SimPO (arXiv
    2405.14734, eq. 6). h is a difference of mean log-probabilities of a token.

    Args:
        beta: inverse temperature of h, above 0; the larger, the nearer to a hinge at gamma / beta. The paper tries 2 to
            10; 2.5 as released for Llama-3-Instruct.
        gamma: margin that beta h is to exceed, at least 0; 0: none. 0.55 beta as released for Llama-3-Instruct.
    """
    h, metrics = compared(student_logprobs, None, mask, group_size, beta=beta, length_normalised=True)
    return -functional.logsigmoid(beta * h - gamma), metrics


@of_groups(check_pair, in_order=True)
def orpo(student_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group_size: int) -> Pairs:
    """-log sigma(o(w) - o(l)), o(y) = log(P/(1 - P)), P = exp(log q(y)/|y|); the odds ratio of ORPO (arXiv 2403.07691,
    eq. 7). P is the geometric mean of a response's token probabilities; above e^-1e-6 it counts as that.
    """
    own = response_logprobs(student_logprobs, mask, length_normalised=True)
    preferred, other = paired(own, group_size)
    return -functional.logsigmoid(_log_odds(preferred) - _log_odds(other)), pair_metrics(own, own, group_size)


@of_groups(check_pair, in_order=True)
def slic(
    student_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group_size: int, *, delta: NonNegative = 1.0
) -> Pairs:
    """max(0, delta - h), h = log q(w) - log q(l); dL/dh = -1 where it is positive. The rank calibration of SLiC-HF
    (arXiv 2305.10425).

    Args:
        delta: margin in nats at which a pair stops learning, at least 0; 0: the order alone.
    """
    h, metrics = compared(student_logprobs, None, mask, group_size)
    return (delta - h).relu(), metrics


@of_groups(check_pair, in_order=True)
def chosen_likelihood(
    student_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    length_normalised: bool = False,
) -> Float[Tensor, " P"]:
    """-log q(w), w the preferred response; divided by |w| if `length_normalised`.

    Args:
        length_normalised: take the mean over the response's tokens; false: the sum, as in CPO's paper.
    """
    preferred, _ = paired(response_logprobs(student_logprobs, mask, length_normalised=length_normalised), group_size)
    return -preferred


def _log_odds(logprobs: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """log P - log(1 - P) of log P; where P is near 1, 1 - P has no digits, but expm1 has."""
    log = logprobs.clamp(max=CERTAIN)
    log_rest = torch.where(log > -0.7, (-torch.expm1(log)).log(), torch.log1p(-log.exp()))
    return log - log_rest
