r"""Policy gradients: the student learns from responses that were written, by how good each token turned out to be.

y_t are the labels, q the student as it is now, q_old as it was when they were written (both at temperature 1), and b
the distribution that they were drawn from: q_old itself, one that was heated or cut, or a mixture with the teacher.
Ratios of probabilities stand in the losses, so that

    -rho_t A_t, rho_t = q(y_t)/b(y_t)   has the gradient   -rho_t A_t grad log q(y_t),

which is REINFORCE's where b = q. What came before y_t is taken as it was drawn: its ratios are left out, as everybody
does, since their product has no useful variance. A_t is a constant.

`clip_low`, `clip_high` are those of PPO (arXiv 1707.06347, eq. 7): -min(rho A, clip(rho, 1 - low, 1 + high) A), so a
token whose ratio has gone far enough in the direction of A stops to learn.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.objectives.divergence import Fraction, NonNegative, Positive
from kd.objectives.returns import Baseline, check_peers, group_advantages, returns
from kd.signals import of_groups
from kd.types import WRITERS

MAX_LOG_RATIO = 20.0  # nats; nobody draws a token that is e^20 times less probable than the student has it


def wide(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def surrogate(
    log_ratio: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> Float[Tensor, "*n"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = e^log_ratio; None: no bound on that side."""
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    advantages = advantages.detach()
    if clip_low is None and clip_high is None:
        return -ratio * advantages
    low = None if clip_low is None else 1 - clip_low
    high = None if clip_high is None else 1 + clip_high
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def drawn_elsewhere(
    old_logprobs: Float[Tensor, "*n"], behaviour_logprobs: Float[Tensor, "*n"], cap: float
) -> Float[Tensor, "*n"]:
    """min(q_old(y)/b(y), cap): what a token weighs that was not drawn from the student at temperature 1."""
    log_ratio = wide(old_logprobs) - wide(behaviour_logprobs)
    return log_ratio.detach().clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def policy_gradient(
    student_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Float[Tensor, "*n"]:
    """-min(rho A, clip(rho) A), rho = q(y_t)/b(y_t), A = the reward's advantage of y_t. arXiv 1707.06347, eq. 7.

    Whatever advantages a reward gives to tokens. With those of `reward=log_ratio` it is the long part of MiniLLM's
    gradient (arXiv 2306.08543, algorithm 1), b its mixture with the teacher.
    """
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    return surrogate(log_ratio, wide(advantages), clip_low=clip_low, clip_high=clip_high)


def opd(
    student_logprobs: Float[Tensor, "*n"],
    teacher_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    *,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Float[Tensor, "*n"]:
    """-rho A, rho = q(y_t)/b(y_t), A = log p(y_t) - log q_old(y_t); E dL/dz = that of KL(q || p).

    On-policy distillation (Lu, On-Policy Distillation, Thinking Machines Lab, 2025): the estimator k1 as the reward
    of a policy gradient, each token by itself. Where b = q_old = q its expected gradient is that of the reverse KL over
    the vocabulary (`objective=opd_full`), which has less variance but needs more of the teacher than one
    log-probability. See `opd_discounted` for what a token does to those after it.
    """
    advantages = wide(teacher_logprobs) - wide(old_logprobs)
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    return surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)


def opd_discounted(
    student_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    discount: Fraction = 0.0,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Float[Tensor, "B T"]:
    """-rho A, rho = q(y_t)/b(y_t), A = sum_{t' >= t} gamma^(t' - t) (log p - log q_old)(y_t'), gamma = `discount`.

    Policy gradient of the reverse KL of whole responses (arXiv 2306.08543, section 2.2): exact, in expectation over
    y ~ q, at discount 1, and then noisy. Discount 0, which is `opd`, is what Thinking Machines Lab found no worse.
    """
    rewards = (wide(teacher_logprobs) - wide(old_logprobs)).detach()
    advantages = returns(rewards, mask, discount=discount)
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    return surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)


@of_groups(check_peers)
def reinforce(
    student_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    baseline: Baseline = "leave_one_out",
) -> Float[Tensor, "B T"]:
    """-rho (r - b_0), rho = q(y_t)/b(y_t), b_0 = the mean reward of the prompt's other responses. arXiv 2402.14740.

    Args:
        baseline: leave_one_out (RLOO) and none are unbiased; group, the mean of all, is smaller by (G - 1)/G.
    """
    advantages = group_advantages(rewards, group_size, baseline=baseline)
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    return surrogate(log_ratio, advantages[:, None].expand_as(log_ratio))


@of_groups(check_peers)
def grpo(
    student_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    by_deviation: bool = True,
    clip_low: Fraction | None = 0.2,
    clip_high: NonNegative | None = 0.2,
    cap: Positive = 3.0,
) -> Float[Tensor, "B T"]:
    """-w min(rho A, clip(rho) A), rho = q(y_t)/q_old(y_t), A = (r - mean(r))/std(r) in a group, w = min(q_old/b, cap).
    GRPO (arXiv 2402.03300, eq. 3) without its KL, which is `kl_to_reference`.

    The ratio that is clipped is to the student that wrote; w, a constant, is 1 where it wrote at temperature 1, and
    corrects for any other sampling (arXiv 2110.00641, eq. 6). The paper's mean over each response's tokens is
    `reduction=sequence`; DAPO's (arXiv 2503.14476, clip_high 0.28) over all tokens is `reduction=token`.

    Args:
        by_deviation: divide by the group's standard deviation; false is Dr. GRPO (arXiv 2503.20783), or PPO with the
            group's mean for a baseline.
        cap: bound on w; 3 as TRL has it.
    """
    advantages = group_advantages(rewards, group_size, by_deviation=by_deviation)
    return _near_old(
        student_logprobs, old_logprobs, behaviour_logprobs, advantages, clip_low=clip_low, clip_high=clip_high, cap=cap
    )


@of_groups(check_peers)
def grpo_among_own(
    student_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    written_by: Int[Tensor, " B"],
    group_size: int,
    *,
    by_deviation: bool = True,
    clip_low: Fraction | None = 0.2,
    clip_high: NonNegative | None = 0.2,
    cap: Positive = 3.0,
) -> Float[Tensor, "B T"]:
    """-w min(rho A, clip(rho) A), A = (r - mean(r))/std(r) over a group's responses by the student, 0 for others'.

    `grpo` where groups hold responses of others, too, which the student's are compared with (GAD, arXiv 2511.10643):
    those are in no mean and no deviation, and nothing is learnt from them. They count among the tokens and responses
    that a reduction divides by, unless the term says `responses: own`.
    """
    own = written_by == WRITERS.index("student")
    advantages = group_advantages(rewards, group_size, by_deviation=by_deviation, members=own)
    return _near_old(
        student_logprobs, old_logprobs, behaviour_logprobs, advantages, clip_low=clip_low, clip_high=clip_high, cap=cap
    )


def _near_old(
    student_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    *,
    clip_low: float | None,
    clip_high: float | None,
    cap: float,
) -> Float[Tensor, "B T"]:
    """The surrogate about the student that wrote, each token weighed by what it was drawn from."""
    log_ratio = wide(student_logprobs) - wide(old_logprobs)
    values = surrogate(log_ratio, advantages[:, None].expand_as(log_ratio), clip_low=clip_low, clip_high=clip_high)
    return values * drawn_elsewhere(old_logprobs, behaviour_logprobs, cap)
