"""Advantages from the teacher's and the student's log-probabilities, token by token."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kd.objectives.divergence import Fraction, Positive
from kd.objectives.returns import returns
from kd.ranks import sum_over_ranks
from kd.rewards import Reward
from kd.types import Batch, Models

VERSION = 2  # defaults as in the authors' code; tokens without later rewards are not whitened

TINY = 1e-8  # added to a variance


class LogRatio(Reward):
    """Advantages of tokens from r_t = log p(y_t) - log q_old(y_t), the reward of reverse KL: MiniLLM, arXiv 2306.08543.

    The defaults are those of the authors' code (github.com/microsoft/LMOps at 4f2a9de, minillm/minillm/losses.py and
    sampler.py, with the settings of minillm/scripts/gpt2/minillm/train_base_xl.sh): r_t is divided by `scale` and
    clipped, A_t = (1/(T - t + 1)) sum_{t' >= t} discount^(t' - t) r_t', and A is whitened. The sum begins with r_t
    itself, so the last token has its own reward. The code whitens a micro-batch over all ranks, padding included; here
    it is all response tokens of the step, so that the division of a step into micro-batches changes nothing.

    The paper's R_{t+1} is `include_current=false discount=1 scale=1 clip=null whiten=false`: the mean of r over the
    tokens that come after y_t, 0 after the last one. It leaves out r_t, for the effect of y_t on its own step's
    divergence is the single-step term of the objective, in full vocabulary; with `length_normalised=false` the two
    parts together are the gradient of KL(q || p) over whole responses. Without `include_current` a last token has no
    reward: its advantage is 0, and it takes no part in the whitening, which would turn that 0 into a constant bonus
    for ending.

    Args:
        length_normalised: the mean of the summed rewards, not the sum.
        include_current: sum from r_t, not from r_{t+1}.
        discount: of a token's reward for the one before it; the sum is divided by the number of its terms all the same.
        scale: rewards are divided by it, before they are clipped.
        clip: bound on |r_t|; null: none.
        whiten: shift and scale the step's advantages to mean 0 and variance 1.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"advantages"})
    requires: ClassVar[frozenset[str]] = frozenset({"teacher_logprobs", "old_logprobs"})

    def __init__(
        self,
        *,
        length_normalised: bool = True,
        include_current: bool = True,
        discount: Fraction = 0.95,
        scale: Positive = 0.5,
        clip: Positive | None = 100.0,
        whiten: bool = True,
    ):
        self.length_normalised, self.include_current = length_normalised, include_current
        self.discount, self.scale, self.clip, self.whiten = discount, scale, clip, whiten
        self._pending = [0.0, 0.0]  # q_old/b (log p - log q_old) of all tokens since the last report, and their number

    @torch.no_grad()
    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `advantages`; the teacher reads each of them once.

        Raises ValueError where the student's own log-probabilities were not kept, and for a teacher whose tokens are
        not the student's.
        """
        device = models.student.network.device  # the student's live teacher has no parameters of its own
        found = [self._advantages(batch, self._rewards(batch, models, device)) for batch in batches]
        if self.whiten:
            judged = [self._terms(batch.student.mask) > 0 for batch in batches]
            found = whitened(found, judged, device)
        return [replace(batch, advantages=values) for batch, values in zip(batches, found, strict=True)]

    def take_report(self) -> dict[str, tuple[float, float]]:
        """k1 of the reverse KL, in nats per token: the mean of q_old/b (log q_old - log p) over generated tokens.

        b is the distribution that a token was drawn from, q_old itself where it is unknown.
        """
        total, count = self._pending
        self._pending = [0.0, 0.0]
        return {"sampled_reverse_kl": (-total, count)}

    def _rewards(self, batch: Batch, models: Models, device: torch.device) -> Float[Tensor, "B T"]:
        """r_t, scaled and clipped, 0 where there is no loss."""
        if batch.old_logprobs is None:
            raise ValueError(
                "reward LogRatio needs the student's log-probabilities of its responses (old_logprobs), which this "
                "rollout does not keep; take rollout=on_policy or teacher_mixed"
            )
        teacher, mask = batch.teacher, batch.student.mask
        if not torch.equal(teacher.labels[teacher.mask], batch.student.labels[mask]):
            raise ValueError(
                "reward LogRatio compares log-probabilities of the same tokens, but teacher and student tokenize "
                "differently; take a teacher with the student's tokenizer"
            )
        logprobs = models.teacher.read(batch, frozenset({"logprobs"}), device).logprobs
        assert logprobs is not None
        old = batch.old_logprobs
        theirs = logprobs.to(old.device)[teacher.mask].to(torch.promote_types(logprobs.dtype, torch.float32))
        ratio = (theirs - old[mask]) / self.scale
        bounded = ratio if self.clip is None else ratio.clamp(-self.clip, self.clip)
        drawn = old[mask] if batch.behaviour_logprobs is None else batch.behaviour_logprobs[mask]
        self._pending[0] += ((old[mask] - drawn).exp() * ratio).sum().item() * self.scale
        self._pending[1] += len(ratio)
        return bounded.new_zeros(mask.shape).masked_scatter(mask, bounded)

    def _advantages(self, batch: Batch, rewards: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """R_{t+1}, or R_t, before whitening."""
        mask = batch.student.mask
        total, terms = returns(rewards, mask, discount=self.discount), self._terms(mask)
        if not self.include_current:
            total = total - rewards
        values = total / terms.clamp(min=1) if self.length_normalised else total
        return torch.where(mask, values, 0.0)

    def _terms(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The number of rewards that each position's return sums; 0 at a last token where its own is left out."""
        later = remaining(mask) if self.include_current else remaining(mask) - 1
        return torch.where(mask, later, 0.0)


def remaining(mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The number of response tokens from each position on, itself included."""
    return mask.flip(-1).cumsum(-1).flip(-1).to(torch.float32)


def whitened(
    values: list[Float[Tensor, "_ _"]], masks: list[Bool[Tensor, "_ _"]], device: torch.device
) -> list[Float[Tensor, "_ _"]]:
    """(x - mean)/sqrt(variance + 1e-8) over the positions of `masks` of all micro-batches and ranks; 0 elsewhere.

    device: where sums over ranks are made.
    """
    none = torch.zeros(0, dtype=torch.float64, device=device)  # of a rank without a micro-batch
    rows = torch.cat([x[mask].double() for x, mask in zip(values, masks, strict=True)] or [none])
    count, total = sum_over_ranks(torch.stack([rows.new_tensor(len(rows)), rows.sum()]).to(device)).tolist()
    mean = total / max(count, 1.0)
    deviations = sum_over_ranks((rows - mean).square().sum().to(device)).item()
    scale = (deviations / max(count, 1.0) + TINY) ** -0.5
    return [torch.where(mask, (x - mean) * scale, 0.0) for x, mask in zip(values, masks, strict=True)]
