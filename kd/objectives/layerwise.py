"""Losses on several layers at once. See `kd.objectives.features` on parameters and widths.

With one token, one head and features 2 wide: where h - g = (1, 1) in the only block and 0 in the embeddings, hidden
states add (1 + 1)/2 = 1. Queries and keys of ones give the student the score 2/sqrt(2), zeros the teacher the score 0,
so scores add 2:

>>> import torch
>>> from kd.objectives.layerwise import TinyBERT
>>> from kd.types import Shape
>>> term = TinyBERT(projection="none")
>>> term.sized_for(Shape(width=2, layers=1, heads=1), Shape(width=2, layers=1, heads=1))
>>> one, zero, mask = torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor([[True]])
>>> term((zero, one), (zero, zero), ((one[None],) * 3,), ((zero[None],) * 3,), mask, mask).round(decimals=4)
tensor([[3.]])
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kd.kernels.chunks import CHUNK
from kd.kernels.logits import HeadLogits, label_logprobs
from kd.objectives.features import squared_error, wide
from kd.objectives.layers import (
    LayerMap,
    LayerMatch,
    Positions,
    Projection,
    block_pairs,
    compared,
    layer_pairs,
    over_positions,
    through,
)
from kd.objectives.relations import attention_scores, check_heads
from kd.types import QKV, Head, Progress, Shape

Share = Annotated[float, Field(ge=0, lt=1)]


class TinyBERT(nn.Module):
    """sum_l [1/D |h_l W_l - g_l|^2 + 1/h sum_a mean_j (S^s_aj - S^t_aj)^2], S = Q K'/sqrt(d) before softmax, l = 0 too.

    TinyBERT's transformer distillation (arXiv 1909.10351, eqs. 7-9): embeddings (l = 0, without the scores), hidden
    states, and the scores of token t with itself and those before it. The prediction layer is a term of its own: add
    fkl. Heads are compared one to one, so both models need as many. W is a projection for each pair of layers.

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, or pairs as [[1, 2], [2, 4]]
            (`kd.objectives.layers.layer_pairs`), beside the embeddings. `uniform` in the paper: 3, 6, 9 and 12 of 12
            for a student of 4.
        projection: from the student's width to the teacher's: `linear` always, as in the paper, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too, as in the paper's pre-training.
    """

    match: LayerMatch

    def __init__(
        self, *, layers: LayerMap = "uniform", projection: Projection = "linear", positions: Positions = "response"
    ) -> None:
        super().__init__()
        self.layers, self.projection, self.positions = layers, projection, positions

    def sized_for(self, student: Shape, teacher: Shape) -> None:
        """Make the projections; raises ValueError, see `LayerMatch`, and for two models of unlike numbers of heads."""
        check_heads(student.heads, teacher.heads)
        pairs = layer_pairs(self.layers, student.layers, teacher.layers)
        self.blocks = block_pairs([pair for pair in pairs if pair != (0, 0)], student.layers, teacher.layers)
        with_embeddings = [[0, 0], *(list(pair) for pair in pairs if pair != (0, 0))]
        self.match = LayerMatch(student, teacher, layers=with_embeddings, projection=self.projection)

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        teacher_hidden: tuple[Float[Tensor, "B T E"], ...],
        student_qkv: tuple[QKV, ...],
        teacher_qkv: tuple[QKV, ...],
        mask: Bool[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """A value for each position."""
        rows = compared(mask, real, self.positions)
        pairs = self.match(student_hidden, teacher_hidden, rows)
        values = torch.stack([squared_error(wide(h), wide(g)) for h, g in pairs]).sum(0)
        for s, t in self.blocks:
            values = values + _score_error(student_qkv[s], teacher_qkv[t], rows, real)
        return over_positions(values, rows, self.positions)


class TaskAwareFilters(nn.Module):
    """sum_l 1/E |F^s_l h_l - sg(F^t_l g_l)|^2 after stage one; in it, -sum_l log q(y | F h_l) of both models' filters.

    TED (arXiv 2210.01351): filters learn which features of a layer serve the task while both models are frozen; then
    the student and its filters learn to match the teacher's filtered states. `sg` is a constant, so that the teacher's
    filters learn from the task alone.

    Both stages are parts of one run here: in the first `stage_one` of its steps this term gives the student no
    gradient. Left out of the paper's method: a task head for each layer (the teacher's own head reads all filters,
    the student's too, which therefore map to the teacher's width), filters with a non-linearity, and stage two's
    further task loss (add sft and fkl as terms).

    Args:
        stage_one: share of the run's steps in which filters learn the task, 0 to below 1; 0: they stay the identity.
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, or pairs as [[0, 0], [2, 4]],
            0 the embeddings (`kd.objectives.layers.layer_pairs`).
    """

    targets: LayerMatch
    filters: nn.ModuleList
    learning: Tensor

    def __init__(self, *, stage_one: Share = 0.25, layers: LayerMap = "uniform") -> None:
        super().__init__()
        self.stage_one, self.layers = stage_one, layers
        self.register_buffer("learning", torch.tensor(stage_one > 0))  # whether filters learn in the step to come

    def sized_for(self, student: Shape, teacher: Shape) -> None:
        """Make the filters, one for each model and pair of layers."""
        self.targets = LayerMatch(student, teacher, layers=self.layers, projection="linear")
        filters = [nn.Linear(teacher.width, teacher.width, bias=False) for _ in self.targets.pairs]
        for linear in filters:
            nn.init.eye_(linear.weight)  # at first the task is read from the whole layer
        self.filters = nn.ModuleList(filters)
        for i, linear in enumerate(filters):
            self.register_buffer(f"learnt_{i}", linear.weight.detach().clone())

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        teacher_hidden: tuple[Float[Tensor, "B T E"], ...],
        teacher_head: Head,
        labels: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """A value for each position that predicts a response."""
        learning = bool(self.learning)
        given = tuple(h.detach() for h in student_hidden) if learning else student_hidden
        values = torch.zeros((), device=mask.device)
        learnt_filters = [self.get_buffer(f"learnt_{i}") for i in range(len(self.filters))]
        matched = self.targets(given, teacher_hidden, mask)
        for (h, g), linear, learnt in zip(matched, self.filters, learnt_filters, strict=True):
            if learning:
                filtered = through(linear, g)
                values = values + _nll(h, teacher_head, labels[mask]) + _nll(filtered, teacher_head, labels[mask])
            else:
                values = values + squared_error(wide(h), wide(g.to(learnt.dtype) @ learnt.T))
        idle = self.filters.parameters() if not learning else student_hidden[-1:]
        nothing = sum(
            (0.0 * x.sum() for x in idle), start=torch.zeros((), device=mask.device)
        )  # for DDP: all take part
        return over_positions(values + nothing, mask, "response")

    def after_step(self, value: float, progress: Progress) -> None:
        """Store the filters of stage one: an optimizer's momentum moves idle filters on, and would move the targets."""
        if self.learning:
            for i, weight in enumerate(self.filters.parameters()):
                self.get_buffer(f"learnt_{i}").copy_(weight.detach())
        self.learning.fill_(progress.fraction < self.stage_one)


def _score_error(
    student: QKV, teacher: QKV, rows: Bool[Tensor, "B T"], real: Bool[Tensor, "B T"]
) -> Float[Tensor, " n"]:
    """The squared difference of scores, its mean over heads and over visible positions."""
    check_heads(student[0].shape[1], teacher[0].shape[1])

    def of(b: int) -> Tensor:
        ours, theirs = (wide(attention_scores(x[0][b], x[1][b], rows[b], real[b])) for x in (student, teacher))
        seen = ours.detach().isfinite()
        error = (ours.masked_fill(~seen, 0.0) - theirs.masked_fill(~seen, 0.0)).square()
        return (error.sum(-1) / seen.sum(-1)).mean(0)

    return torch.cat([checkpoint(of, b, use_reentrant=False) for b in range(len(rows))])


def _nll(features: Float[Tensor, "n E"], head: Head, labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log q(label), the head's logits a chunk at a time, recomputed in the backward pass."""
    logits = HeadLogits(features, head)

    def of(piece: slice) -> Tensor:
        return -label_logprobs(logits.rows(piece), labels[piece])

    pieces = [slice(start, start + CHUNK) for start in range(0, len(labels), CHUNK)]
    return torch.cat([checkpoint(of, piece, use_reentrant=False) for piece in pieces] or [features.sum(-1)])
