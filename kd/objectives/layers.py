"""Pairs of the student's and the teacher's layers, and the projections that bring both to one width.

Hidden states are counted as in `ModelOutput.hidden`: 0 is the output of the embeddings, l that of block l, and the
last, at index `Shape.layers`, has passed the final norm. So a model of L blocks has L + 1 hidden states, and its
attention l (of L) works between l - 1 and l.

Two blocks spread evenly over four learn from the second and the fourth:

>>> from kd.objectives.layers import layer_pairs
>>> layer_pairs("uniform", student=2, teacher=4)
[(1, 2), (2, 4)]
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kd.types import Shape

LayerMap = Literal["last", "skip", "tail", "uniform"] | Sequence[Sequence[int]]
Layers = Literal["last", "skip", "tail", "uniform", "learned"] | Sequence[Sequence[int]]
Projection = Literal["auto", "linear", "none"]
Positions = Literal["response", "all"]


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's, teacher's) indices for models of `student` and `teacher` blocks, in the student's order.

    last:      the last of each.
    skip:      every block of the student but its last, spread over the teacher: i -> i L_t / L_s (PKD-Skip).
    tail:      the same blocks, from the teacher's last ones without its very last: i -> i + L_t - L_s (PKD-Last).
    uniform:   every block of the student, spread over the teacher; the last learns from the last (TinyBERT).
    [[s, t], ...]: these.

    Fractions are rounded, halves up. Raises ValueError for an index that is not there, and for a map that leaves
    nothing.
    """
    if not isinstance(layers, str):
        return _explicit(layers, student, teacher)
    if layers == "last":
        return [(student, teacher)]
    if layers == "uniform":
        return [(i, _spread(i, student, teacher)) for i in range(1, student + 1)]
    if student == 1:
        raise ValueError(f"layers={layers} leaves out the student's last layer, and it has no other; take layers=last")
    if layers == "skip":
        return [(i, _spread(i, student, teacher)) for i in range(1, student)]
    if teacher < student:
        raise ValueError(f"layers=tail needs a teacher of at least the student's {student} layers, not {teacher}")
    return [(i, i + teacher - student) for i in range(1, student)]


def block_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """`layer_pairs` of attention, which blocks have and embeddings have not, as indices from 0."""
    pairs = layer_pairs(layers, student, teacher)
    if any(0 in pair for pair in pairs):
        raise ValueError(
            f"layers={_shown(layers)} names layer 0, the embeddings, which attend to nothing; begin with 1"
        )
    return [(s - 1, t - 1) for s, t in pairs]


def _explicit(layers: Sequence[Sequence[int]], student: int, teacher: int) -> list[tuple[int, int]]:
    if not layers or any(len(pair) != 2 for pair in layers):
        raise ValueError(
            f"layers={_shown(layers)}: give pairs [student's layer, teacher's layer], e.g. [[0, 0], [2, 4]]"
        )
    for i, (side, depth) in enumerate((("student", student), ("teacher", teacher))):
        if wrong := [pair[i] for pair in layers if not 0 <= pair[i] <= depth]:
            raise ValueError(
                f"layers={_shown(layers)}: the {side} has no layer {wrong[0]}; it has 0 (embeddings) to {depth} (last)"
            )
    return [(s, t) for s, t in layers]


def _spread(i: int, student: int, teacher: int) -> int:
    return min(max((2 * i * teacher + student) // (2 * student), 1), teacher)


def _shown(layers: LayerMap) -> str:
    return layers if isinstance(layers, str) else str([list(pair) for pair in layers])


class LayerMatch(nn.Module):
    """Pairs of feature rows, one for each pair of layers: the student's, projected, and the teacher's.

    Args:
        layers: see `layer_pairs`. With `learned` each block of the student learns from a mixture of all blocks of the
            teacher, sum_l softmax(w)_l h_l, whose weights begin even.
        projection: from the student's to the teacher's width, without a bias, for each pair: `linear` always, `auto`
            where the widths differ, `none` never.

    Raises:
        ValueError: the widths differ and projection is `none`; or see `layer_pairs`.
    """

    def __init__(self, student: Shape, teacher: Shape, *, layers: Layers, projection: Projection):
        super().__init__()
        if projection == "none" and student.width != teacher.width:
            raise ValueError(
                f"projection=none compares features of one width, but the student's are {student.width} and the "
                f"teacher's {teacher.width} wide; set projection=auto"
            )
        self.teacher_layers = teacher.layers
        self.mixture = None
        if isinstance(layers, str) and layers == "learned":
            self.pairs = [(i, -1) for i in range(1, student.layers + 1)]
            self.mixture = nn.Parameter(torch.zeros(student.layers, teacher.layers))
        else:
            self.pairs = layer_pairs(layers, student.layers, teacher.layers)
        linear = projection == "linear" or student.width != teacher.width
        self.projections = nn.ModuleList(
            nn.Linear(student.width, teacher.width, bias=False) if linear else nn.Identity() for _ in self.pairs
        )

    def forward(
        self,
        student: tuple[Float[Tensor, "B T D"], ...],
        teacher: tuple[Float[Tensor, "B T E"], ...],
        rows: Bool[Tensor, "B T"],
    ) -> list[tuple[Float[Tensor, "n E"], Float[Tensor, "n E"]]]:
        """The pairs at the True positions of `rows`, in order."""
        return [
            (through(project, student[pair[0]][rows]), self._target(i, teacher, rows))
            for i, (pair, project) in enumerate(zip(self.pairs, self.projections, strict=True))
        ]

    def _target(
        self, i: int, teacher: tuple[Float[Tensor, "B T E"], ...], rows: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "n E"]:
        if self.mixture is None:
            return teacher[self.pairs[i][1]][rows]
        weights = self.mixture[i].softmax(-1)
        return sum((w * h[rows] for w, h in zip(weights, teacher[1:], strict=True)), start=torch.zeros(()).to(weights))


def through(projection: nn.Module, states: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
    """The projection (a Linear or an Identity) of states that may come in another precision than its weights."""
    weight = getattr(projection, "weight", None)
    return projection(states if weight is None else states.to(weight.dtype))


def compared(mask: Bool[Tensor, "B T"], real: Bool[Tensor, "B T"], positions: Positions) -> Bool[Tensor, "B T"]:
    """The positions whose features are compared: those that predict a response, or all but padding."""
    return mask if positions == "response" else real


def over_positions(
    values: Float[Tensor, " n"], rows: Bool[Tensor, "B T"], positions: Positions
) -> Float[Tensor, "B T"]:
    """Values at the True positions of `rows`, put back; 0 elsewhere.

    With positions=all every position of a sequence holds the mean over it, for later averages are over the positions
    of responses.
    """
    placed = values.new_zeros(rows.shape).masked_scatter(rows, values)
    if positions == "response":
        return placed
    return (placed.sum(-1) / rows.sum(-1).clamp(min=1))[:, None].expand(rows.shape)
