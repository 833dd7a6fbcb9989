"""A student that is to write what nobody can tell from its teacher's texts, and the network that tries to tell."""

import copy
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad

from kd.eval_mode import eval_mode
from kd.objectives.reward_model import at_end, ends, scalar_head
from kd.signals import of_groups
from kd.types import Sequences

HIDDEN = frozenset({"hidden"})


def check_demonstrated(group_size: int) -> None:
    """Raises ValueError for groups of one."""
    if group_size < 2:
        raise ValueError(
            "the discriminator compares a teacher's response with the student's own to the same prompt, but each "
            "prompt has one response; take rollout=demonstrated"
        )


class Discriminator(nn.Module):
    """-log sigma(D(y_t) - D(y_s)), y_t the first response of a group, y_s the others; the mean over these.

    GAD's discriminator (arXiv 2511.10643, eq. 3): the preferred response of each group is the teacher's, all others are
    the student's own (rollout=demonstrated). reward=discriminator makes its scores the policy's rewards, those of the
    weights before this step's update. It reads ids alone, so that no gradient goes from it to the student.

    D is a network of its own: the student as it is before the first step, with a scalar head, on the last token of the
    response (the end token of what was finished). Weights, their gradients and optimizer states are there twice then,
    and each sequence is read by it once more to learn and once to judge; both are counted in the run's `judge_flops`,
    not in its `student_flops`. In the paper's warm-up D learns while the student is tuned on the teacher's texts: a
    policy term that is silent at first, and one of `sft` with `responses: given` that falls silent (`method=gad`).
    """

    network: nn.Module
    head: nn.Linear

    def __init__(self) -> None:  # for the reference page: nn.Module itself takes anything
        super().__init__()

    def starts_from(self, student: Any) -> None:
        """Copy the student; its output projection is left out, for nothing would learn there."""
        copied = copy.deepcopy(student).train()
        copied.network.set_output_embeddings(nn.Identity())
        self.network = copied
        self.head = scalar_head(student.shape.width)

    @of_groups(check_demonstrated, in_order=True)
    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        group_size: int,
    ) -> Float[Tensor, " P"]:
        """A value for each group. Raises ValueError for groups of one."""
        check_demonstrated(group_size)
        scores = self.score(tokens, labels, mask, real).view(-1, group_size)
        return -logsigmoid(scores[:, :1] - scores[:, 1:]).mean(-1)

    def score(
        self,
        tokens: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
    ) -> Float[Tensor, " B"]:
        """D of each response."""
        sequences, end = _with_last_label(tokens, labels, mask, real)
        return at_end(self.head, self.network(sequences, HIDDEN).hidden[-1], end)

    def reading(self, sequences: Sequences) -> tuple[nn.Module, nn.Linear, Int[Tensor, " B"]]:
        """Who reads to score these, the head, and how many tokens of each: for whoever counts what it costs."""
        return self.network, self.head, sequences.lengths + 1  # the last label, too

    def judge(self, sequences: Sequences) -> Float[Tensor, " B"]:
        """D of each response, without dropout."""
        with eval_mode([self]):
            s = sequences.to(self.head.weight.device)
            return self.score(s.tokens, s.labels, s.mask, s.real)


def _with_last_label(
    tokens: Int[Tensor, "B T"], labels: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], real: Bool[Tensor, "B T"]
) -> tuple[Sequences, Int[Tensor, " B"]]:
    """Sequences with their last label as one more token (padding on either side stays), and where that is."""
    end = ends(mask)[:, None]
    longer = pad(tokens, (0, 1)).scatter(1, end + 1, labels.gather(1, end))
    nowhere = torch.zeros_like(longer, dtype=torch.bool)
    side: Literal["right", "left"] = "right" if bool(real[:, 0].all()) else "left"
    return Sequences(longer, longer, nowhere, real.sum(-1) + 1, side), end[:, 0] + 1
