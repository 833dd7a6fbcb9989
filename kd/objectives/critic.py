"""A learnt baseline: the reward to be expected from here on, predicted from the student's last hidden states.

The head begins at 0, so a response of one token with reward 1 has the advantage A = R = 1. At ratio 1 the policy's part
is -1 and the head's (0 - 1)^2/2, of weight 0.1: -1 + 0.05 = -0.95.

>>> import torch
>>> from kd.objectives.critic import PPO
>>> from kd.types import Shape
>>> ppo = PPO(value_weight=0.1).requires_grad_(False)
>>> ppo.sized_for(Shape(width=2, layers=1), None)
>>> drawn, hidden = torch.tensor([[0.5]]).log(), (torch.ones(1, 1, 2),)
>>> values, metrics = ppo(drawn, drawn, drawn, torch.tensor([1.0]), hidden, torch.tensor([[True]]))
>>> values.detach(), metrics["value_loss"].detach()
(tensor([[-0.9500]]), tensor([[0.5000]]))
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from kd.objectives.divergence import Fraction, NonNegative, Positive
from kd.objectives.policy import SAMPLING, Grid, approximate_kl, drawn_elsewhere, surrogate, surrogate_metrics, wide
from kd.objectives.returns import advantages_of, at_the_end
from kd.types import Progress, Shape


class PPO(nn.Module):
    """-w min(rho A, clip(rho) A) + value_weight max((V - R)^2, (clip(V, V_old) - R)^2)/2, rho = q(y_t)/q_old(y_t),
    A = R - V_old. Proximal policy optimization (arXiv 1707.06347, eq. 9) with a value head.

    V_t = v h_t + c reads the student's last hidden state before y_t; the reward comes at the last token. Advantages
    and returns R = A + V_old are made with the head as it was when the window was generated: a copy that is renewed
    every `uses` steps, so a replay must neither mix windows nor end one early (capacity, max_age). The hidden states
    that it reads are the current ones, so V_old moves with the student while a window is used again. The head begins at
    0. With a group's mean for a baseline instead of a head: objective=grpo with by_deviation=false.

    Args:
        discount: gamma, per token, 0 to 1; 1: a reward counts alike for all tokens before it, 0: for its own alone.
        gae_lambda: 0 to 1; 1 uses rewards alone, 0 the head alone beyond the next token (arXiv 1506.02438).
        clip_low: the ratio rho counts no further below 1 - clip_low where A is negative; null: no bound. 0.2 in the
            paper.
        clip_high: the ratio rho counts no further above 1 + clip_high where A is positive; null: no bound. 0.2 in the
            paper.
        uses: optimizer steps that learn from the same window, as the rollout has it; the clips have an effect from
            the second on.
        value_clip: largest distance of V from V_old at which V still learns, in units of the reward; null: no bound.
            0.2 in TRL.
        value_weight: weight of the head's loss beside the policy's, at least 0. 0.1 in TRL.
        through_student: backpropagate the head's loss into the student's body, too; false: into the head alone.
        cap: bound on w = q_old/b, above 0, which corrects for sampling other than the student's at temperature 1.
    """

    whole_windows: ClassVar[bool] = True
    value: nn.Linear
    held_weight: Tensor
    held_bias: Tensor

    def __init__(
        self,
        *,
        discount: Fraction = 1.0,
        gae_lambda: Fraction = 0.95,
        clip_low: Fraction | None = 0.2,
        clip_high: NonNegative | None = 0.2,
        value_clip: Positive | None = 0.2,
        value_weight: NonNegative = 0.1,
        uses: Annotated[int, Field(ge=1)] = 1,
        through_student: bool = False,
        cap: Positive = 3.0,
    ):
        super().__init__()
        self.discount, self.gae_lambda, self.uses, self.cap = discount, gae_lambda, uses, cap
        self.clip_low, self.clip_high = clip_low, clip_high
        self.value_clip, self.value_weight, self.through_student = value_clip, value_weight, through_student

    def sized_for(self, student: Shape, teacher: Shape | None) -> None:
        """Make the head, and the copy that is held."""
        self.value = nn.Linear(student.width, 1)
        for parameter in self.value.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("held_weight", self.value.weight.detach().clone())
        self.register_buffer("held_bias", self.value.bias.detach().clone())

    def forward(
        self,
        student_logprobs: Float[Tensor, "B T"],
        old_logprobs: Float[Tensor, "B T"],
        behaviour_logprobs: Float[Tensor, "B T"],
        rewards: Float[Tensor, " B"],
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        mask: Bool[Tensor, "B T"],
    ) -> Grid:
        """The loss of policy and head at each position; `value_loss` is the head's, before its weight."""
        hidden = student_hidden[-1].to(self.value.weight.dtype)
        with torch.no_grad():
            held = nn.functional.linear(hidden, self.held_weight, self.held_bias)[..., 0]
            outcome = at_the_end(rewards.to(held.dtype), mask)
            settings = {"discount": self.discount, "gae_lambda": self.gae_lambda}
            advantages = advantages_of(outcome, held, mask, **settings)
        values = self.value(hidden if self.through_student else hidden.detach())[..., 0]
        log_ratio = wide(student_logprobs) - wide(old_logprobs)
        bounds = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        weights = drawn_elsewhere(old_logprobs, behaviour_logprobs, self.cap)
        policy = surrogate(log_ratio, advantages.to(log_ratio.dtype), **bounds) * weights
        error = value_error(values, held, advantages + held, self.value_clip)
        metrics = surrogate_metrics(log_ratio, advantages.to(log_ratio.dtype), **bounds)
        metrics |= approximate_kl(student_logprobs, old_logprobs) | {SAMPLING: weights, "value_loss": error}
        return policy + self.value_weight * error.to(policy.dtype), metrics

    def after_step(self, value: float, progress: Progress) -> None:
        """Renew the copy where the next step learns from a new window."""
        if progress.step % self.uses == 0:
            self.held_weight.copy_(self.value.weight.detach())
            self.held_bias.copy_(self.value.bias.detach())


def value_error(
    values: Float[Tensor, "*n"], old: Float[Tensor, "*n"], returns: Float[Tensor, "*n"], clip: float | None
) -> Float[Tensor, "*n"]:
    """max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)/2; without a clip, (V - R)^2/2."""
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns).square())
    return error / 2
