"""Dual-space distillation: each model's states, projected into the other's space, are read by the other's head.

h is the student's last hidden state, g the teacher's, at rows that predict a response. In the student's space the
teacher is p^ = softmax(sg(W_s) P g), W_s the student's head and P a projection to its width; in the teacher's space
the student is q^ = softmax(W_t Q h), W_t the teacher's head and Q a projection to its width. With q and p the models'
own distributions:

    D(sg(p^), q) + CE(p^, y) + KL(p || q^)

The first teaches the student in its own space, the second the projection P (sg stops the gradient: the student's head
is not moved by it), the third the student in the teacher's space. Arithmetic after the heads is in float32 or
wider, in pieces of rows, so that no `[n, V]` tensor stays.

DSKD: arXiv 2406.17328; with exact token alignment: arXiv 2504.11426 (DSKDv2). Both weigh the sum with 0.5 beside 0.5
of the labels' cross-entropy, and use temperature 2 for the divergences without the factor temperature^2. Projections
are the term's own: they learn at `optim.lr`, or with an optimizer apart at the term's `lr` (1e-3; in DSKDv2 5e-4).

Heads of weight 0 make all distributions uniform: both divergences are 0, and CE(p^, y) = log V. With V = 4 ids, at one
token that both models generate, log 4 = 1.3863:

>>> import torch
>>> from kd.objectives.dual_space import DualSpace
>>> from kd.types import Head, Shape, Spans
>>> term = DualSpace()
>>> term.sized_for(Shape(width=2, layers=1), Shape(width=3, layers=1))
>>> h, g, y, mask = torch.ones(1, 1, 2), torch.ones(1, 1, 3), torch.tensor([[0]]), torch.tensor([[True]])
>>> spans = Spans(*(torch.tensor([i]) for i in (0, 1, 0, 1, 0)))
>>> term((h,), (g,), Head(torch.zeros(4, 2)), Head(torch.zeros(4, 3)), y, mask, mask, spans).detach()
tensor([[1.3863]])
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kd.kernels.chunks import CHUNK, slices
from kd.kernels.logits import HeadLogits, label_logprobs
from kd.kernels.products import wide_product
from kd.objectives.divergence import Positive, forward_kl
from kd.objectives.heads import Ids, carried
from kd.objectives.layers import over_positions, through
from kd.types import Head, Shape, Spans

Start = Literal["random", "pseudo_inverse"]


class _DualSpace(nn.Module):
    """Projections, made once both models are known, and the three comparisons."""

    to_student: nn.Linear
    to_teacher: nn.Linear

    def __init__(
        self, *, divergence: Callable = forward_kl, temperature: Positive = 2.0, only_correct: bool = False
    ) -> None:
        super().__init__()
        self.divergence, self.temperature, self.only_correct = divergence, temperature, only_correct

    def sized_for(self, student: Shape, teacher: Shape) -> None:
        """Make the projections."""
        self.to_student = nn.Linear(teacher.width, student.width, bias=False)
        self.to_teacher = nn.Linear(student.width, teacher.width, bias=False)

    def in_student_space(
        self,
        h: Float[Tensor, "r D"],
        projected: Float[Tensor, "r D"],
        head: Head,
        labels: Int[Tensor, " r"],
    ) -> Float[Tensor, " r"]:
        """D(sg(p^), q) + CE(p^, y), the first only where the label is the best id of p^ if `only_correct`."""
        frozen = head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())

        def values(rows: slice) -> Tensor:
            q, p = HeadLogits(h, head).rows(rows), HeadLogits(projected, frozen).rows(rows)
            compared = self.divergence(q, p.detach(), temperature=self.temperature)
            if self.only_correct:
                compared = compared * (p.argmax(-1) == labels[rows])
            return compared - label_logprobs(p, labels[rows])

        return _piecewise(values, h)

    def in_teacher_space(
        self, projected: Float[Tensor, "r E"], g: Float[Tensor, "r E"], head: Head
    ) -> Float[Tensor, " r"]:
        """KL(p || q^)."""

        def values(rows: slice) -> Tensor:
            q, p = HeadLogits(projected, head).rows(rows), HeadLogits(g, head).rows(rows)
            return forward_kl(q, p, temperature=self.temperature)

        return _piecewise(values, projected)


class DualSpace(_DualSpace):
    """D(sg(p^), q) + CE(p^, y) + KL(p || q^), at rows where both models have the same token after the same text.

    That is exact token alignment. With one tokenizer these are all rows, which is DSKD for equal vocabularies.

    In the authors' code of DSKDv2 P learns, while Q is made again from the student's head at every step; their
    pseudo-inverse drops singular values below K 2^-23 of the largest (K ids), this one those below 1e-6. The teacher's
    own most probable id stands for y in CE(p^, y) there, and the first divergence counts where it is that of p^.

    Args:
        divergence: D, a function of the student's and the teacher's logits (`kd.objectives.divergence`) that takes a
            temperature; it compares in the student's space. Forward KL in the paper.
        temperature: divisor of all logits that are compared, above 0, in both spaces; the cross-entropy has 1. 2 in
            the paper.
        only_correct: count the first divergence only where the label is the most probable id of p^; false: everywhere.
        start: `random`: projections begin as linear layers do (DSKD). `pseudo_inverse`: P = W_s^+ W_t and
            Q = W_t^+ W_s, of the heads' rows at ids that both tokenizers have (DSKDv2): the student's head gives P g
            the logits that the teacher's gives g, and the other way round for Q h, as nearly as a linear map can; see
            `kd.objectives.heads.carried`. Both learn from there.
    """

    def __init__(
        self,
        *,
        divergence: Callable = forward_kl,
        temperature: Positive = 2.0,
        only_correct: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__(divergence=divergence, temperature=temperature, only_correct=only_correct)
        self.start = start

    @property
    def begins_with_heads(self) -> bool:
        """True where `begins_with` must be called."""
        return self.start == "pseudo_inverse"

    @torch.no_grad()
    def begins_with(self, student: Head, teacher: Head, shared: tuple[Ids, Ids]) -> None:
        """Set the projections by the two heads, at ids of the student and of the teacher that mean the same.

        Raises ValueError for heads whose biases differ there.
        """
        ours, theirs = shared
        self.to_student.weight.copy_(carried(teacher, theirs, student, ours))
        self.to_teacher.weight.copy_(carried(student, ours, teacher, theirs))

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        native_teacher_hidden: tuple[Float[Tensor, "B U E"], ...],
        student_head: Head,
        native_teacher_head: Head,
        labels: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        teacher_mask: Bool[Tensor, "B U"],
        spans: Spans,
    ) -> Float[Tensor, "B T"]:
        """A value for each position; 0 where tokens differ."""
        single = (spans.end - spans.start == 1) & (spans.teacher_end - spans.teacher_start == 1)
        ours, theirs = spans.start[single], spans.teacher_start[single]
        h, g = student_hidden[-1][mask][ours], native_teacher_hidden[-1][teacher_mask][theirs]
        values = self.in_student_space(h, through(self.to_student, g), student_head, labels[mask][ours])
        values = values + self.in_teacher_space(through(self.to_teacher, h), g, native_teacher_head)
        values = values.new_zeros(int(mask.sum())).index_add(0, ours, values)
        return over_positions(values, mask, "response")


class DualSpaceAttention(_DualSpace):
    """D(sg(p^), q) + CE(p^, y) + KL(p || q^), of states that cross-model attention (CMA) has mixed.

    In place of an alignment, every row attends to the response in the other tokens. The query of a student's row is its
    embeddings of the token read and the token predicted, projected; the keys are those of the teacher's rows. The
    weights, over one response at a time, mix the projected states, of the teacher for the student's rows and of the
    student for the teacher's. The sum over the teacher's rows is spread evenly over the student's rows of the response.

    Where the authors divide by the deviation over a batch, padding included, this divides embeddings by that of the
    whole matrix and states by that of the response, so that a response's value does not depend on its neighbours.

    Args:
        divergence: D, a function of the student's and the teacher's logits (`kd.objectives.divergence`) that takes a
            temperature; it compares in the student's space. Forward KL in the paper.
        temperature: divisor of all logits that are compared, above 0, in both spaces; the cross-entropy has 1. 2 in
            the paper.
        only_correct: count the first divergence only where the label is the most probable id of p^; false: everywhere.
            True in the authors' code.
    """

    to_query: nn.Linear

    def __init__(
        self, *, divergence: Callable = forward_kl, temperature: Positive = 2.0, only_correct: bool = True
    ) -> None:
        super().__init__(divergence=divergence, temperature=temperature, only_correct=only_correct)

    def sized_for(self, student: Shape, teacher: Shape) -> None:
        """Make the projections."""
        super().sized_for(student, teacher)
        self.to_query = nn.Linear(2 * student.width, 2 * teacher.width, bias=False)

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        native_teacher_hidden: tuple[Float[Tensor, "B U E"], ...],
        student_embeddings: Float[Tensor, "V D"],
        native_teacher_embeddings: Float[Tensor, "W E"],
        student_head: Head,
        native_teacher_head: Head,
        tokens: Int[Tensor, "B T"],
        labels: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        teacher_tokens: Int[Tensor, "B U"],
        teacher_labels: Int[Tensor, "B U"],
        teacher_mask: Bool[Tensor, "B U"],
    ) -> Float[Tensor, "B T"]:
        """A value for each position."""
        h, g = student_hidden[-1], native_teacher_hidden[-1]
        ours, theirs = student_embeddings.detach(), native_teacher_embeddings / native_teacher_embeddings.std()
        query = through(self.to_query, torch.cat([ours[tokens], ours[labels]], -1))
        key = torch.cat([theirs[teacher_tokens], theirs[teacher_labels]], -1)
        scores = wide_product(query, key.transpose(-1, -2)) / math.sqrt(2 * g.shape[-1])
        scores = scores.masked_fill(~(mask[:, :, None] & teacher_mask[:, None]), -1e5)
        mixed = through(self.to_student, _scaled(g, teacher_mask) + theirs[teacher_labels])
        from_teacher = (scores.softmax(2).to(mixed) @ mixed)[mask]
        values = self.in_student_space(h[mask], from_teacher, student_head, labels[mask])
        mixed = through(self.to_teacher, h)
        from_student = (scores.softmax(1).transpose(1, 2).to(mixed) @ mixed)[teacher_mask]
        there = self.in_teacher_space(from_student, g[teacher_mask], native_teacher_head)
        there = over_positions(there, teacher_mask, "response").sum(1)
        return over_positions(values, mask, "response") + _spread(there, mask)


def _scaled(states: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """The states divided by the standard deviation of their response's entries."""
    count = (mask.sum(1) * states.shape[-1]).clamp(min=2)[:, None, None]
    kept = states * mask[..., None]
    mean = kept.sum((1, 2), keepdim=True) / count
    variance = ((states - mean).square() * mask[..., None]).sum((1, 2), keepdim=True) / (count - 1)
    return kept / variance.sqrt().clamp(min=torch.finfo(states.dtype).tiny ** 0.5)


def _piecewise(values: Callable[[slice], Tensor], rows: Float[Tensor, "r D"]) -> Float[Tensor, " r"]:
    """Values of all rows; each piece's logits are made again in the backward pass."""
    pieces = [checkpoint(values, piece, use_reentrant=False) for piece in slices(len(rows), CHUNK)]
    return torch.cat(pieces) if pieces else rows.new_zeros(0)


def _spread(sums: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each sequence's sum in even shares at its rows."""
    return mask * (sums / mask.sum(1).clamp(min=1))[:, None]
