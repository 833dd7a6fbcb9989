"""Losses on an ordered group of responses to one prompt; one value for each prompt.

s_i = log q(y_i)/|y_i| is the student's score of response i, its mean log-probability of a token, and u_i the teacher's.
The order is that of the rewards (a verifier, a reward model, a judge; `rrhf`, `pro`) or of the teacher's scores
(`listwise`, `margin`, `margin_mse`). Responses that are equal in it keep the order of the batch.

Two responses of one token have the scores s = (-1, -2), the second the higher reward: RRHF is max(0, -1 + 2) = 1. With
the teacher's scores u = (-2, -1), Margin-MSE is [(s_1 - s_2) - (u_1 - u_2)]^2 = (1 + 1)^2 = 4:

>>> import torch
>>> from kd.objectives.ranking import margin_mse, rrhf
>>> s, u, mask = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-2.0], [-1.0]]), torch.tensor([[True], [True]])
>>> rrhf(s, mask, torch.tensor([0.0, 1.0]), group_size=2), margin_mse(s, u, mask, group_size=2)
(tensor([1.]), tensor([4.]))
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.objectives.divergence import NonNegative, Positive, kl
from kd.objectives.preference import response_logprobs
from kd.signals import of_groups


def check_group(group_size: int) -> None:
    """Raises ValueError for one response to a prompt."""
    if group_size < 2:
        raise ValueError(
            f"group_size={group_size}: there is nothing to rank; give each record at least two responses, or let the "
            "rollout generate them with rollout.samples=4"
        )


def grouped(values: Float[Tensor, " B"], group_size: int) -> Float[Tensor, "P G"]:
    """One row for each prompt.

    Raises ValueError if prompts have one response each.
    """
    check_group(group_size)
    return values.view(-1, group_size)


def scores(
    logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], group_size: int, *, length_normalised: bool = True
) -> Float[Tensor, "P G"]:
    """The scores s: mean log-probability of a token, or log q(y) itself."""
    return grouped(response_logprobs(logprobs, mask, length_normalised=length_normalised), group_size)


# ---- in the order of the rewards -------------------------------------------------------------------------------------


@of_groups(check_group)
def rrhf(
    student_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], rewards: Float[Tensor, " B"], group_size: int
) -> Float[Tensor, " P"]:
    """sum_{r_i < r_j} max(0, s_i - s_j), s_i = log q(y_i)/|y_i|, r_i = the reward of response i; RRHF (arXiv
    2304.05302, eq. 2). Responses of equal reward are not compared.
    """
    s, r = scores(student_logprobs, mask, group_size), grouped(rewards, group_size)
    worse = r.unsqueeze(-1) < r.unsqueeze(-2)  # [P i j]
    return ((s.unsqueeze(-1) - s.unsqueeze(-2)).relu() * worse).sum((-2, -1))


@of_groups(check_group)
def pro(
    student_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    by_reward_gap: bool = True,
) -> Float[Tensor, " P"]:
    """-sum_{k < n} log [exp(c_kk s_k) / sum_{i >= k} exp(c_ki s_i)], s_1 .. s_n in falling order of the rewards r; PRO
    (arXiv 2306.17492).

    Args:
        by_reward_gap: c_ki = r_k - r_i and c_kk = the largest of them, so that responses of equal reward do not push
            each other (the paper's 1/T). False: c = 1, the likelihood of the order under Plackett and Luce's model;
            with two responses -log sigma(s_1 - s_2).
    """
    s, r = scores(student_logprobs, mask, group_size), grouped(rewards, group_size)
    order = _falling(r)
    s, r = s.gather(-1, order), r.gather(-1, order).to(s.dtype)
    c = _gaps(r) if by_reward_gap else torch.ones_like(r).unsqueeze(-1).expand(*r.shape, group_size)
    logits = c * s.unsqueeze(-2)  # [P k i]
    before = torch.ones_like(logits, dtype=torch.bool).tril(-1)
    terms = logits.masked_fill(before, -torch.inf).logsumexp(-1) - logits.diagonal(dim1=-2, dim2=-1)
    return terms[:, :-1].sum(-1)


@of_groups(check_group)
def best_likelihood(
    student_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    length_normalised: bool = False,
) -> Float[Tensor, " P"]:
    """-log q(y), y the response of the highest reward; divided by |y| if `length_normalised`.

    Args:
        length_normalised: take the mean over the response's tokens; false: the sum, as in RRHF's paper.
    """
    s = scores(student_logprobs, mask, group_size, length_normalised=length_normalised)
    best = _falling(grouped(rewards, group_size))[:, :1]
    return -s.gather(-1, best).squeeze(-1)


# ---- in the order of the teacher's scores ----------------------------------------------------------------------------


@of_groups(check_group)
def listwise(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    tau: Positive = 1.0,
) -> Float[Tensor, " P"]:
    """KL(softmax(u / tau) || softmax(s / tau)), s_i = log q(y_i)/|y_i|, u_i = log p(y_i)/|y_i|; dL/ds_i = (Q_i -
    P_i)/tau. ListNet's top-one loss on the teacher's scores: Cao et al., Learning to Rank: From Pairwise Approach to
    Listwise Approach, 2007. ListNet has the cross-entropy, larger by the entropy of softmax(u / tau).

    Args:
        tau: temperature of the distribution over responses, not tokens, above 0, in nats per token; the smaller, the
            more the best of a group counts alone, and large ones make all alike. 1: the scores as they are.
    """
    s, u = scores(student_logprobs, mask, group_size), scores(teacher_logprobs, mask, group_size)
    return kl((u / tau).log_softmax(-1), (s / tau).log_softmax(-1))


@of_groups(check_group)
def margin(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
    *,
    margin: NonNegative = 0.001,
) -> Float[Tensor, " P"]:
    """sum_{i < j} max(0, s_j - s_i + (j - i) margin), s_1 .. s_n in falling order of the teacher's scores; the
    contrastive loss of BRIO (arXiv 2203.16804) with a teacher as the judge.

    Args:
        margin: by how much s must fall with each place, at least 0, in nats per token; 0: the order alone. 0.001 in
            the paper on CNN/DailyMail.
    """
    s, u = scores(student_logprobs, mask, group_size), scores(teacher_logprobs, mask, group_size)
    s = s.gather(-1, _falling(u))
    place = torch.arange(group_size, device=s.device)
    least = margin * (place - place.unsqueeze(-1))  # [i j]
    return (s.unsqueeze(-2) - s.unsqueeze(-1) + least).relu().triu(1).sum((-2, -1))


@of_groups(check_group)
def margin_mse(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    group_size: int,
) -> Float[Tensor, " P"]:
    """mean_{i < j} [(s_i - s_j) - (u_i - u_j)]^2, s_i = log q(y_i)/|y_i|, u_i = log p(y_i)/|y_i|; Margin-MSE (arXiv
    2010.02666). The size of a difference counts, and not only its sign; a constant between the two scores does not.
    """
    d = scores(student_logprobs, mask, group_size) - scores(teacher_logprobs, mask, group_size)
    squares = (d.unsqueeze(-1) - d.unsqueeze(-2)).square().triu(1)
    return squares.sum((-2, -1)) / (group_size * (group_size - 1) / 2)


def _falling(values: Float[Tensor, "P G"]) -> Int[Tensor, "P G"]:
    """Places from the highest to the lowest; equals in the order of the batch."""
    return values.sort(dim=-1, descending=True, stable=True).indices


def _gaps(rewards: Float[Tensor, "P G"]) -> Float[Tensor, "P G G"]:
    """c: r_k - r_i, and on the diagonal the largest of each row."""
    gaps = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
    return gaps + torch.diag_embed(gaps.amax(-1))  # the rewards fall, so that the largest is behind k
