r"""Policy gradients: the student learns from generated responses, by the advantage of each token.

y_t are the labels, q the present student, q_old the student that generated them (both at temperature 1), and b
the distribution that they were drawn from: q_old itself, one of another temperature or top-p, or a mixture with the
teacher. The losses hold ratios of probabilities, so that

    -rho_t A_t, rho_t = q(y_t)/b(y_t)   has the gradient   -rho_t A_t grad log q(y_t),

which is REINFORCE's where b = q. The ratios of the tokens before y_t are left out, as is usual, since their product
has no useful variance. A_t is a constant.

`clip_low`, `clip_high` are those of PPO (arXiv 1707.06347, eq. 7): -min(rho A, clip(rho, 1 - low, 1 + high) A), so a
token whose ratio has gone far enough in the direction of A stops learning.

At ratio 2, advantage 1 and clip_high 0.2 the loss is -min(2, 1.2) = -1.2. On-policy distillation of a token with
p = 1/2 and q = q_old = b = 1/4 has ratio 1 and advantage log 2, so the loss is -0.6931:

>>> import torch
>>> from kd.objectives.policy import opd, surrogate
>>> surrogate(torch.tensor([2.0]).log(), torch.tensor([1.0]), clip_high=0.2)
tensor([-1.2000])
>>> p, q, logits = torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.tensor([[0.25, 0.75]]).log()
>>> values, metrics = opd(q, p, q, q, logits)
>>> values, metrics["ratio"]
(tensor([-0.6931]), tensor([1.]))

Beside its value each term logs, in TRL's names where it has one:

    ratio                                rho, the ratio that is clipped (PPO's `val/ratio`)
    clip_ratio/low_mean, high_mean       1 where rho < 1 - clip_low and A < 0; where rho > 1 + clip_high and A > 0
    clip_ratio/region_mean               1 where either is so; none of these three without a bound
    approx_kl                            (log q(y_t)/q_old(y_t))^2/2 (PPO's `policy/approxkl_avg`), where q_old is known
    sampling/importance_sampling_ratio/mean  w = min(q_old/b, cap), where tokens are weighed by it
    entropy                              -sum_v q log q, where the logits are at hand
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.objectives.divergence import Fraction, NonNegative, Positive
from kd.objectives.returns import Baseline, check_peers, group_advantages, returns
from kd.signals import of_groups
from kd.types import WRITERS

Rows = tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]  # values and metrics
Grid = tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]

SAMPLING = "sampling/importance_sampling_ratio/mean"  # TRL's name
MAX_LOG_RATIO = 20.0  # nats; no token is drawn that is e^20 times less probable than under the student


def wide(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values in at least float32."""
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


@torch.no_grad()
def surrogate_metrics(
    log_ratio: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> dict[str, Float[Tensor, "*n"]]:
    """`ratio` and `clip_ratio/*` of `surrogate` with the same arguments, see above."""
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    beyond = {}
    if clip_low is not None:
        beyond["low"] = (ratio < 1 - clip_low) & (advantages < 0)
    if clip_high is not None:
        beyond["high"] = (ratio > 1 + clip_high) & (advantages > 0)
    if beyond:
        beyond["region"] = torch.stack([*beyond.values()]).any(0)
    return {"ratio": ratio} | {f"clip_ratio/{side}_mean": clipped.to(ratio) for side, clipped in beyond.items()}


@torch.no_grad()
def approximate_kl(
    student_logprobs: Float[Tensor, "*n"], old_logprobs: Float[Tensor, "*n"]
) -> dict[str, Float[Tensor, "*n"]]:
    """`approx_kl`: (log q(y) - log q_old(y))^2/2, the estimator k2 of Schulman, Approximating KL Divergence, 2020."""
    return {"approx_kl": (wide(student_logprobs) - wide(old_logprobs)).square() / 2}


@torch.no_grad()
def entropy(student_logits: Float[Tensor, "*n V"]) -> dict[str, Float[Tensor, "*n"]]:
    """`entropy`: -sum_v q log q in nats, q = softmax of the logits."""
    return {"entropy": torch.special.entr(wide(student_logits).softmax(-1)).sum(-1)}


def drawn_elsewhere(
    old_logprobs: Float[Tensor, "*n"], behaviour_logprobs: Float[Tensor, "*n"], cap: float
) -> Float[Tensor, "*n"]:
    """min(q_old(y)/b(y), cap), the weight of a token that was not drawn from the student at temperature 1."""
    log_ratio = wide(old_logprobs) - wide(behaviour_logprobs)
    return log_ratio.detach().clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def policy_gradient(
    student_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    student_logits: Float[Tensor, "*n V"],
    *,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Rows:
    """-min(rho A, clip(rho) A), rho = q(y_t)/b(y_t), A = the reward's advantage of y_t. arXiv 1707.06347, eq. 7.

    The advantages are those of any reward of tokens. With those of `reward=log_ratio` it is the long part of MiniLLM's
    gradient (arXiv 2306.08543, algorithm 1), b its mixture with the teacher.

    Args:
        clip_low: rho counts no further below 1 - clip_low where A is negative, 0 to 1; null: no bound.
        clip_high: rho counts no further above 1 + clip_high where A is positive, at least 0; null: no bound. 0.2 in
            the papers of PPO and MiniLLM.
    """
    log_ratio, advantages = wide(student_logprobs) - wide(behaviour_logprobs), wide(advantages)
    values = surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    metrics = surrogate_metrics(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return values, metrics | entropy(student_logits)


def opd(
    student_logprobs: Float[Tensor, "*n"],
    teacher_logprobs: Float[Tensor, "*n"],
    behaviour_logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    student_logits: Float[Tensor, "*n V"],
    *,
    clip_low: Fraction | None = None,
    clip_high: NonNegative | None = None,
) -> Rows:
    """-rho A, rho = q(y_t)/b(y_t), A = log p(y_t) - log q_old(y_t); E dL/dz = that of KL(q || p).

    On-policy distillation (Lu, On-Policy Distillation, Thinking Machines Lab, 2025): the estimator k1 as the reward
    of a policy gradient, each token by itself. Where b = q_old = q its expected gradient is that of the reverse KL over
    the vocabulary (`objective=opd_full`), which has less variance but needs more of the teacher than one
    log-probability. See `opd_discounted` for a token's effect on those after it.

    Args:
        clip_low: rho counts no further below 1 - clip_low where A is negative, 0 to 1; null: no bound. null in
            the authors' recipe.
        clip_high: rho counts no further above 1 + clip_high where A is positive, at least 0; null: no bound. null in
            the authors' recipe.
    """
    advantages = wide(teacher_logprobs) - wide(old_logprobs)
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    values = surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    metrics = surrogate_metrics(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return values, metrics | approximate_kl(student_logprobs, old_logprobs) | entropy(student_logits)


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
) -> Grid:
    """-rho A, rho = q(y_t)/b(y_t), A = sum_{t' >= t} gamma^(t' - t) (log p - log q_old)(y_t'), gamma = `discount`.

    Policy gradient of the reverse KL of whole responses (arXiv 2306.08543, section 2.2): exact, in expectation over
    y ~ q, at discount 1, and then noisy. Discount 0 is `opd`, which Thinking Machines Lab found no worse.

    Args:
        discount: gamma, per token, 0 to 1; 0: each token by itself, 1: all later ones count alike.
        clip_low: rho counts no further below 1 - clip_low where A is negative, 0 to 1; null: no bound.
        clip_high: rho counts no further above 1 + clip_high where A is positive, at least 0; null: no bound.
    """
    rewards = (wide(teacher_logprobs) - wide(old_logprobs)).detach()
    advantages = returns(rewards, mask, discount=discount)
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    values = surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    metrics = surrogate_metrics(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return values, metrics | approximate_kl(student_logprobs, old_logprobs)


@of_groups(check_peers)
def reinforce(
    student_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    baseline: Baseline = "leave_one_out",
) -> Grid:
    """-rho (r - b_0), rho = q(y_t)/b(y_t), b_0 = the mean reward of the prompt's other responses. arXiv 2402.14740.

    Args:
        baseline: leave_one_out (RLOO) and none are unbiased; group, the mean of all, is smaller by (G - 1)/G.
    """
    log_ratio = wide(student_logprobs) - wide(behaviour_logprobs)
    advantages = group_advantages(rewards, group_size, baseline=baseline)[:, None].expand_as(log_ratio)
    return surrogate(log_ratio, advantages), surrogate_metrics(log_ratio, advantages)


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
) -> Grid:
    """-w min(rho A, clip(rho) A), rho = q(y_t)/q_old(y_t), A = (r - mean(r))/std(r) in a group, w = min(q_old/b, cap).
    GRPO (arXiv 2402.03300, eq. 3) without its KL, which is `kl_to_reference`.

    The ratio that is clipped is to the student that generated; w, a constant, is 1 for sampling at temperature 1, and
    corrects for any other (arXiv 2110.00641, eq. 6). The paper's mean over each response's tokens is
    `reduction=sequence`; DAPO's (arXiv 2503.14476, clip_high 0.28) over all tokens is `reduction=token`.

    Args:
        by_deviation: divide by the group's standard deviation; false is Dr. GRPO (arXiv 2503.20783), or PPO with the
            group's mean for a baseline.
        clip_low: rho counts no further below 1 - clip_low where A is negative, 0 to 1; null: no bound. 0.2 in
            TRL.
        clip_high: rho counts no further above 1 + clip_high where A is positive, at least 0; null: no bound. 0.2 in
            TRL, 0.28 in DAPO.
        cap: bound on w, above 0; 3 as TRL has it.
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
) -> Grid:
    """-w min(rho A, clip(rho) A), A = (r - mean(r))/std(r) over a group's responses by the student, 0 for others'.

    `grpo` where groups hold responses of others, too, which the student's are compared with (GAD, arXiv 2511.10643):
    those are in no mean and no deviation, and nothing is learnt from them. They count among the tokens and responses
    that a reduction divides by, unless the term has `responses: student`.

    Args:
        by_deviation: divide by the standard deviation of the student's responses; false: subtract their mean alone.
        clip_low: rho counts no further below 1 - clip_low where A is negative, 0 to 1; null: no bound. 0.2 in
            the authors' scripts.
        clip_high: rho counts no further above 1 + clip_high where A is positive, at least 0; null: no bound. 0.2 in
            the authors' scripts.
        cap: bound on w = q_old/b, above 0, for sampling at another temperature than 1; 3 as TRL has it.
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
) -> Grid:
    """The surrogate about q_old, each token weighed by the distribution that it was drawn from."""
    log_ratio = wide(student_logprobs) - wide(old_logprobs)
    each = advantages[:, None].expand_as(log_ratio)
    weights = drawn_elsewhere(old_logprobs, behaviour_logprobs, cap)
    values = surrogate(log_ratio, each, clip_low=clip_low, clip_high=clip_high) * weights
    metrics = surrogate_metrics(log_ratio, each, clip_low=clip_low, clip_high=clip_high)
    return values, metrics | approximate_kl(student_logprobs, old_logprobs) | {SAMPLING: weights}
