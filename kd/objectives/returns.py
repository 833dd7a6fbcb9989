"""From rewards to advantages: over the tokens of a response, and over the responses to a prompt.

Nothing here is differentiated. Positions without loss are passed over: a response may be interrupted.

At discount 1/2, a reward of 1 at the last of three tokens is worth 1/4, 1/2 and 1. Of rewards (3, 1) each is compared
with the other: 3 - 1 = 2 and 1 - 3 = -2.

>>> import torch
>>> from kd.objectives.returns import group_advantages, returns
>>> returns(torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool), discount=0.5)
tensor([[0.2500, 0.5000, 1.0000]])
>>> group_advantages(torch.tensor([3.0, 1.0]), 2, baseline="leave_one_out")
tensor([ 2., -2.])
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Baseline = Literal["none", "group", "leave_one_out"]

EPSILON = 1e-4  # added to a group's standard deviation; TRL's


def advantages_of(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
) -> Float[Tensor, "B T"]:
    """sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; V is 0 after the last token.

    Generalized advantage estimation (arXiv 1506.02438, eq. 16): lambda = 0 is delta_t itself, lambda = 1 the return
    minus V_t. 0 where `mask` is False.
    """
    advantages = torch.zeros_like(rewards)
    following = carried = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + discount * following - values[:, t]
        carried = torch.where(here, delta + discount * gae_lambda * carried, carried)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, carried, 0.0)
    return advantages


def returns(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, discount: float = 1.0) -> Float[Tensor, "B T"]:
    """sum_{t' >= t} gamma^(t' - t) r_t', t' - t counted in response tokens; 0 where `mask` is False."""
    return advantages_of(rewards, torch.zeros_like(rewards), mask, discount=discount)


def at_the_end(rewards: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each response's reward at its last token, 0 before."""
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return torch.where(last, rewards[:, None], 0.0)


def check_peers(group_size: int, *, baseline: Baseline = "group") -> None:
    """Raises ValueError for one response to a prompt where a baseline needs its peers."""
    if group_size < 2 and baseline != "none":
        raise ValueError(
            "group_size=1: a response has no peers to be compared with; set rollout.samples=4 (at least 2), "
            "or take objective=reinforce with baseline=none"
        )


def group_advantages(
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    baseline: Baseline = "group",
    by_deviation: bool = False,
    members: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """r_i - b, b the mean of the group ("group"), of its other members ("leave_one_out"), or 0 ("none").

    by_deviation: divide by the group's standard deviation (of a sample, n - 1) + 1e-4, as GRPO does.
    members: responses that count in their group, None: all; the others have 0.

    Raises ValueError where a group has one member and its peers are needed.
    """
    wide = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    check_peers(group_size, baseline="group" if by_deviation else baseline)
    groups = wide.view(-1, group_size)
    inside = torch.ones_like(groups, dtype=torch.bool) if members is None else members.view(-1, group_size)
    count, peers = ((inside.sum(-1, keepdim=True) - less).clamp(min=1).to(groups) for less in (0, 1))
    centred = groups - torch.where(inside, groups, 0.0).sum(-1, keepdim=True) / count
    found = torch.where(inside, groups if baseline == "none" else centred, 0.0)
    if baseline == "leave_one_out":
        found = found * (count / peers)
    if by_deviation:
        variance = torch.where(inside, centred, 0.0).square().sum(-1, keepdim=True) / peers
        found = found / (variance.sqrt() + EPSILON)
    return found.flatten()
