"""Adversarial distillation: a network separates the teacher's responses from the student's, and rewards the student.

The loss depends on the difference of two scores alone, so a discriminator whose head has the weight 0 has the value
-log sigma(0) = log 2 = 0.6931 for every group, here one of two responses of two tokens:

>>> import torch
>>> from kd.models.networks import scratch
>>> from kd.objectives.adversarial import Discriminator
>>> small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
>>> discriminator = Discriminator()
>>> discriminator.starts_from(scratch(architecture={"model_type": "llama", **small}))
>>> discriminator.head.weight.data.zero_()
tensor([[0., 0., 0., 0., 0., 0., 0., 0.]])
>>> tokens, mask = torch.tensor([[1, 2], [1, 3]]), torch.ones(2, 2, dtype=torch.bool)
>>> values, metrics = discriminator(tokens, tokens, mask, mask, group_size=2)
>>> values.detach()
tensor([0.6931])
"""

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
    response (the end token of a finished one). Weights, gradients and optimizer states therefore exist twice, and the
    network processes each sequence once to learn and once to score; both are counted in the run's `judge_flops`, not
    in its `student_flops`. In the paper's warm-up D learns while the student is tuned on the teacher's texts: a policy
    term whose weight is 0 at first, and one of `sft` with `responses: other` whose weight falls to 0 (`method=gad`).
    """

    network: nn.Module
    head: nn.Linear

    def __init__(self) -> None:  # for the reference page: nn.Module itself takes anything
        super().__init__()

    def starts_from(self, student: Any) -> None:
        """Copy the student without its output projection, which would not learn."""
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
    ) -> tuple[Float[Tensor, " P"], dict[str, Float[Tensor, " P"]]]:
        """A value for each group, and `accuracy`: the share of the student's responses that score below the teacher's.

        Raises ValueError for groups of one.
        """
        check_demonstrated(group_size)
        scores = self.score(tokens, labels, mask, real).view(-1, group_size)
        margins = scores[:, :1] - scores[:, 1:]
        return -logsigmoid(margins).mean(-1), {"accuracy": (margins > 0).to(margins).mean(-1)}

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
        """The network and the head that score these, and the tokens processed of each: the cost of scoring."""
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
