"""Scores of whole responses, learnt from preferences among them.

The score is read off the last hidden state of a response that stands in `tokens`: the one that predicts its last label.
So it depends on all of the response but that label, which is the end token of a finished one.

A response whose score is higher by log 3 is preferred with probability 3/4, so the loss is log(4/3) = 0.2877:

>>> import torch
>>> from kd.objectives.reward_model import bradley_terry
>>> bradley_terry(torch.tensor([3.0, 1.0]).log(), group_size=2)
tensor([0.2877])
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from kd.objectives.features import wide
from kd.objectives.layers import through
from kd.signals import of_groups
from kd.types import Shape


def check_comparable(group_size: int) -> None:
    """Raises ValueError for groups of one."""
    if group_size < 2:
        raise ValueError(
            "there is one response to each prompt and nothing to compare it with; take rollout=paired, "
            "or records with two responses, the preferred one first"
        )


class RewardModel(nn.Module):
    """-log sigma(r(y_w) - r(y_l)), r = v h, h the student's last hidden state at the end of a response.

    Bradley-Terry on preferences (arXiv 2203.02155, eq. 1). A group holds its responses best first; where it has more
    than two, the value is the mean over all pairs of them, as in that equation. The student becomes the backbone: after
    the run, `student/` and the head in `objective.safetensors` together are the reward model (reward=reward_model).
    """

    head: nn.Linear

    def __init__(self) -> None:  # for the reference page: nn.Module itself takes anything
        super().__init__()

    def sized_for(self, student: Shape, teacher: Shape | None) -> None:
        """Make the head."""
        self.head = scalar_head(student.width)

    @of_groups(check_comparable, in_order=True)
    def forward(
        self, student_hidden: tuple[Float[Tensor, "B T D"], ...], mask: Bool[Tensor, "B T"], group_size: int
    ) -> tuple[Float[Tensor, " P"], dict[str, Float[Tensor, " P"]]]:
        """A value for each group; `accuracy` and `margin` of its pairs are logged, in TRL's names."""
        scores = self.score(student_hidden[-1], mask)
        values = bradley_terry(scores, group_size)
        margins = margins_of(scores.detach(), group_size)
        return values, {"accuracy": (margins > 0).to(margins).mean(-1), "margin": margins.mean(-1)}

    def score(self, hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """r of each response, from last hidden states."""
        return at_end(self.head, hidden, ends(mask))


def scalar_head(width: int) -> nn.Linear:
    """A head for scores, small, so that scores begin near one another (arXiv 2009.01325, appendix B)."""
    head = nn.Linear(width, 1, bias=False)  # a bias would be the same in all scores, and only differences count
    nn.init.normal_(head.weight, std=1 / math.sqrt(width + 1))
    return head


def ends(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """The last position of each response; of a row that has none, the last of the row."""
    return mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)


def at_end(head: nn.Linear, hidden: Float[Tensor, "B T D"], end: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The head's score at one position of each row, in float32 or wider."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return wide(through(head, hidden[rows, end])[:, 0])


def bradley_terry(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " P"]:
    """-log sigma(r_i - r_j), the mean over the pairs i < j of each group; the first of a group is the best.

    Raises ValueError for groups of one.
    """
    return -logsigmoid(margins_of(scores, group_size)).mean(-1)


def margins_of(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, "P pairs"]:
    """r_i - r_j for the pairs i < j of each group. Raises ValueError for groups of one."""
    check_comparable(group_size)
    of_group = scores.view(-1, group_size)
    better, worse = torch.triu_indices(group_size, group_size, offset=1, device=scores.device)
    return of_group[:, better] - of_group[:, worse]
