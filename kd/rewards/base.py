"""Writing rewards into batches, and keeping account of them."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from kd.rewards import Reward
from kd.types import WRITERS, Batch


class Verdicts(Reward):
    """What every reward has in common: the mean of what it gave is told, apart for each writer."""

    def __init__(self) -> None:
        self._untold: dict[str, tuple[float, float]] = {}  # writer -> sum and count since the last report

    def give(self, batch: Batch, rewards: Float[Tensor, " B"], verdicts: Float[Tensor, " B"] | None = None) -> Batch:
        """The batch with `rewards`, on the CPU in float32, as the encoder makes batches.

        verdicts: what is told of them, where that is something else.
        """
        rewards = rewards.detach().cpu().float()
        told = rewards if verdicts is None else verdicts.detach().cpu().float()
        for place, writer in enumerate(WRITERS):
            theirs = told[:0] if batch.written_by is None else told[batch.written_by.cpu() == place]
            if len(theirs):
                total, count = self._untold.get(writer, (0.0, 0.0))
                self._untold[writer] = total + float(theirs.sum()), count + len(theirs)
        return replace(batch, rewards=rewards)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """`reward_student`, `reward_teacher`, `reward_reference`: of the responses that each wrote."""
        told = {f"reward_{writer}": self._untold.get(writer, (0.0, 0.0)) for writer in WRITERS}
        self._untold = {}
        return told


def finite(rewards: Float[Tensor, " B"], name: str) -> Float[Tensor, " B"]:
    """The same. Raises ValueError where one is no number, for it would be in every parameter after the next step."""
    if bool(rewards.isfinite().all()):
        return rewards
    raise ValueError(
        f"{name} gives {rewards[~rewards.isfinite()][0].item()} for a response; a reward is a finite number"
    )
