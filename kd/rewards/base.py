"""The base of rewards with one number per response: written into batches, and reported."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from kd.rewards import Reward
from kd.types import WRITERS, Batch


class ResponseReward(Reward):
    """A reward of one number per response, whose mean is reported for each writer."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[float, float]] = {}  # writer -> sum and count since the last report

    def give(self, batch: Batch, rewards: Float[Tensor, " B"], reported: Float[Tensor, " B"] | None = None) -> Batch:
        """The batch with `rewards`, on the CPU in float32, as the encoder makes batches.

        reported: the numbers whose means are reported, where they are not the rewards.
        """
        rewards = rewards.detach().cpu().float()
        values = rewards if reported is None else reported.detach().cpu().float()
        for place, writer in enumerate(WRITERS):
            theirs = values[:0] if batch.written_by is None else values[batch.written_by.cpu() == place]
            if len(theirs):
                total, count = self._pending.get(writer, (0.0, 0.0))
                self._pending[writer] = total + float(theirs.sum()), count + len(theirs)
        return replace(batch, rewards=rewards)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """`reward_student`, `reward_teacher`, `reward_reference`: the mean reward of each one's responses."""
        report = {f"reward_{writer}": self._pending.get(writer, (0.0, 0.0)) for writer in WRITERS}
        self._pending = {}
        return report


def finite(rewards: Float[Tensor, " B"], name: str) -> Float[Tensor, " B"]:
    """The rewards. Raises ValueError for one that is not finite, which would be in every parameter after the step."""
    if bool(rewards.isfinite().all()):
        return rewards
    raise ValueError(
        f"{name} gives {rewards[~rewards.isfinite()][0].item()} for a response; a reward is a finite number"
    )
