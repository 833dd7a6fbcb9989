"""Relations among the tokens of a sequence, or the responses of a batch, compared between two models.

Relations are compared, not features, so that widths need not agree and nothing has to be projected. In attention,
token t is related to itself and to those before it, the prompt's included, as in a decoder; padding has
no part in it. Values belong to t: positions that predict a response, or with `positions=all` every token.

Queries and keys are those whose products are the scores (after rotary positions), keys and values repeated for the
query heads that share them.

In one head, the second of two tokens attends evenly in the teacher and by (1/4, 3/4) in the student, the first to
itself: KL is 0 at the first and 1/2 log(4/3) = 0.1438 at the second.

>>> import torch
>>> from kd.objectives.relations import attention_kl
>>> student, teacher = (torch.tensor([[[[1.0, 0.0], row]]]) for row in ([0.25, 0.75], [0.5, 0.5]))
>>> mask = torch.tensor([[True, True]])
>>> attention_kl((student,), (teacher,), mask, mask)
tensor([[0.0000, 0.1438]])
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kd.kernels.products import wide_product
from kd.objectives.divergence import kl, log_probs
from kd.objectives.layers import LayerMap, Positions, block_pairs, compared, layer_pairs, over_positions
from kd.signals import checked_by
from kd.types import QKV, Shape

Count = Annotated[int, Field(ge=1)]


# ---- which models can be compared ------------------------------------------------------------------------------------


def check_heads(student: int | None, teacher: int | None) -> None:
    """Raises ValueError if two models do not have as many attention heads. None: not given yet."""
    if student is not None and teacher is not None and student != teacher:
        raise ValueError(
            f"heads are compared one to one, but the student has {student} attention heads and the teacher {teacher}; "
            "take objective=minilm2, which recuts them"
        )


def _check_width(width: int, heads: int, side: str) -> None:
    if width % heads:
        raise ValueError(
            f"relation_heads={heads} does not divide the {width} of the {side}'s joined heads; "
            "choose a divisor of both models' widths"
        )


def _layer_of(teacher_layer: int | None, depth: int) -> int:
    """The layer counted from 1; None is the last."""
    if teacher_layer is not None and teacher_layer > depth:
        raise ValueError(f"teacher_layer={teacher_layer} is not there: the teacher has {depth}; set at most {depth}")
    return teacher_layer or depth


def _equal_heads(student: Shape, teacher: Shape) -> None:
    check_heads(student.heads, teacher.heads)


def _equal_heads_in_blocks(student: Shape, teacher: Shape, *, layers: LayerMap) -> None:
    block_pairs(layers, student.layers, teacher.layers)
    check_heads(student.heads, teacher.heads)


def _divisible_heads(student: Shape, teacher: Shape, *, relation_heads: int, teacher_layer: int | None) -> None:
    _layer_of(teacher_layer, teacher.layers)
    for shape, side in ((student, "student"), (teacher, "teacher")):
        if shape.heads is not None and shape.head_width is not None:
            _check_width(shape.heads * shape.head_width, relation_heads, side)


def _mapped_layers(student: Shape, teacher: Shape, *, layers: LayerMap) -> None:
    layer_pairs(layers, student.layers, teacher.layers)


# ---- terms -----------------------------------------------------------------------------------------------------------


@checked_by(_equal_heads_in_blocks)
def attention_kl(
    student_attentions: tuple[Float[Tensor, "B h T T"], ...],
    teacher_attentions: tuple[Float[Tensor, "B h T T"], ...],
    mask: Bool[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    *,
    layers: LayerMap = "uniform",
    positions: Positions = "response",
) -> Float[Tensor, "B T"]:
    """1/h sum_a KL(A^t_a || A^s_a), A^t_a the attention of the teacher's head a. Attention transfer (arXiv 2004.02984).

    A are the probabilities that each model itself uses (soft caps and scales included); layers are summed. Heads are
    compared one to one, so both models need as many. Raises ValueError for a student with attention dropout.

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, or pairs as [[1, 2], [2, 4]],
            counted from 1 (`kd.objectives.layers.layer_pairs`).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """
    pairs = block_pairs(layers, len(student_attentions), len(teacher_attentions))
    rows = compared(mask, real, positions)
    found = []
    for s, t in pairs:
        p, q = teacher_attentions[t], student_attentions[s]
        check_heads(q.shape[1], p.shape[1])
        _check_no_dropout(q)
        found.append(_attention_rows(p, q, rows))
    return over_positions(torch.stack(found).sum(0), rows, positions)


@checked_by(_equal_heads)
def minilm(
    student_qkv: tuple[QKV, ...],
    teacher_qkv: tuple[QKV, ...],
    mask: Bool[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    *,
    positions: Positions = "response",
) -> Float[Tensor, "B T"]:
    """1/h sum_a [KL(A^t_a || A^s_a) + KL(V^t_a || V^s_a)], A = softmax(Q K'/sqrt(d)), V = softmax(V V'/sqrt(d)).

    MiniLM (arXiv 2002.10957): attention distributions and value relations of the last layer of each model.
    Both need as many attention heads; `minilm2` does not.

    Args:
        positions: `response`: those that predict a response; `all`: the prompt's too, as in the paper's pre-training.
    """
    student, teacher = student_qkv[-1], teacher_qkv[-1]
    check_heads(student[0].shape[1], teacher[0].shape[1])
    related = ((0, 1), (2, 2))
    return _relation_kl(student, teacher, related, mask, real, positions)


@checked_by(_divisible_heads)
def minilm2(
    student_qkv: tuple[QKV, ...],
    teacher_qkv: tuple[QKV, ...],
    mask: Bool[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    *,
    relation_heads: Count = 16,
    teacher_layer: Count | None = None,
    positions: Positions = "response",
) -> Float[Tensor, "B T"]:
    """1/r sum_a [KL(Q^t_a || Q^s_a) + KL(K^t_a || K^s_a) + KL(V^t_a || V^s_a)], X = softmax(X X'/sqrt(d)).

    MiniLMv2 (arXiv 2012.15828): the vectors of all attention heads are joined and cut into r relation heads
    of width d, so that any two models can be compared whose joined widths r divides. The student's last layer learns.
    Queries carry an architecture's own scale of scores (Granite's), by whose square their relations are flatter.

    Args:
        relation_heads: r, at least 1, a divisor of both joined widths; more heads make finer relations. The paper has
            48 for a teacher 768 wide and 64 for one of 1024: more than attention heads.
        teacher_layer: counted from 1; null is the last. The paper takes an upper middle one of large teachers
            (21 of 24 for BERT-large, 19 of 24 for RoBERTa-large).
        positions: `response`: those that predict a response; `all`: the prompt's too, as in the paper's pre-training.
    """
    layer = _layer_of(teacher_layer, len(teacher_qkv))
    student = _recut(student_qkv[-1], relation_heads, "student")
    teacher = _recut(teacher_qkv[layer - 1], relation_heads, "teacher")
    return _relation_kl(student, teacher, ((0, 0), (1, 1), (2, 2)), mask, real, positions)


@checked_by(_mapped_layers)
def rkd(
    student_hidden: tuple[Float[Tensor, "B T D"], ...],
    teacher_hidden: tuple[Float[Tensor, "B T E"], ...],
    mask: Bool[Tensor, "B T"],
    *,
    level: Literal["token", "response"] = "token",
    distance: float = 1.0,
    angle: float = 2.0,
    items: Annotated[int, Field(ge=2)] = 32,
    layers: LayerMap = "last",
) -> Float[Tensor, " B"]:
    """distance mean_ij H(D^s_ij - D^t_ij) + angle mean_ijk H(C^s_ijk - C^t_ijk), H(x) = x^2/2 or |x| - 1/2 beyond 1.

    Relational KD (arXiv 1904.05068): D_ij = |h_i - h_j| over its mean, C_ijk = cos of the angle i j k at j,
    over distinct items. Turning, scaling or shifting all features of a model changes nothing. Layers are summed.

    Args:
        level: items are the tokens of a response, a value each; or the mean features of the responses of a
            micro-batch, all with one value, which then depends on how a window is split (one response alone gives 0).
        distance: weight of the pairs; 0: angles alone. The paper has 1 to angle's 2.
        angle: weight of the triples; 0: distances alone.
        items: the most that are related, at least 2, evenly taken; memory grows with its cube.
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, or pairs as [[0, 0], [2, 4]],
            0 the embeddings (`kd.objectives.layers.layer_pairs`).
    """
    pairs = layer_pairs(layers, len(student_hidden) - 1, len(teacher_hidden) - 1)
    return torch.stack(
        [_related(student_hidden[s], teacher_hidden[t], mask, level, distance, angle, items) for s, t in pairs]
    ).sum(0)


# ---- attention -------------------------------------------------------------------------------------------------------


def _check_no_dropout(probabilities: Float[Tensor, "B h T T"]) -> None:
    """Raises ValueError after dropout, whose zeros are as far from the teacher as logs go and have no gradient."""
    own = probabilities.detach().diagonal(dim1=2, dim2=3)
    total = probabilities.detach().float().sum(-1)
    if bool(((total - 1).abs() > 0.05)[own > 0].any()):
        raise ValueError(
            "attention_kl compares attention probabilities, but the student's, after dropout, do not sum to 1; "
            "set +student.model.architecture.attention_dropout=0, or take objective=minilm"
        )


def _attention_rows(p: Tensor, q: Tensor, rows: Bool[Tensor, "B T"]) -> Float[Tensor, " n"]:
    """KL(p || q) of probabilities `[B h T T]` at the rows, the mean over heads."""
    at = [x.transpose(1, 2)[rows] for x in (p, q)]  # [n h T]
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in at]
    # The log of 0, where nothing is seen, would have a gradient of 0 * inf.
    return kl(*(log_probs(x.clamp(min=torch.finfo(x.dtype).tiny).log()) for x in wide)).mean(-1)


def _recut(vectors: QKV, heads: int, side: str) -> QKV:
    """The vectors `[B h T d]` as `[B heads T h d / heads]`."""

    def cut(x: Tensor) -> Tensor:
        joined = x.transpose(1, 2).flatten(2)
        _check_width(joined.shape[-1], heads, side)
        return joined.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = map(cut, vectors)
    return q, k, v


def _relation_kl(
    student: QKV,
    teacher: QKV,
    related: tuple[tuple[int, int], ...],
    mask: Bool[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    positions: Positions,
) -> Float[Tensor, "B T"]:
    """KL summed over the `related` pairs of (q, k, v); each sequence's scores are recomputed in the backward pass."""
    rows = compared(mask, real, positions)

    def of(b: int) -> Tensor:
        found = []
        for i, j in related:
            p, q = (attention_scores(x[i][b], x[j][b], rows[b], real[b]) for x in (teacher, student))
            found.append(kl(log_probs(p), log_probs(q)).mean(0))
        return torch.stack(found).sum(0)

    values = torch.cat([checkpoint(of, b, use_reentrant=False) for b in range(len(rows))])
    return over_positions(values, rows, positions)


def attention_scores(
    x: Float[Tensor, "h T d"], y: Float[Tensor, "h T d"], rows: Bool[Tensor, " T"], real: Bool[Tensor, " T"]
) -> Float[Tensor, "h n m"]:
    """x y'/sqrt(d) of the rows to the real positions; -inf for those that come later."""
    place = torch.arange(len(real), device=real.device)
    later = place[real] > place[rows][:, None]
    scores = wide_product(x[:, rows], y[:, real].transpose(1, 2)) / x.shape[-1] ** 0.5
    return scores.masked_fill(later, -torch.inf)


# ---- relational KD ---------------------------------------------------------------------------------------------------


def _related(
    student: Float[Tensor, "B T D"],
    teacher: Float[Tensor, "B T E"],
    mask: Bool[Tensor, "B T"],
    level: str,
    distance: float,
    angle: float,
    items: int,
) -> Float[Tensor, " B"]:
    def value(x: Tensor, y: Tensor) -> Tensor:
        x, y = (_evenly(z, items) for z in (x, y))
        return distance * _huber(_distances(x), _distances(y)) + angle * _huber(_angles(x), _angles(y))

    if level == "token":
        return torch.stack([value(x, y) for x, y in zip(_sets(student, mask), _sets(teacher, mask), strict=True)])
    written = mask.any(-1)
    x, y = (_means(h[written], mask[written]) for h in (student, teacher))
    return value(x, y).expand(len(mask))


def _sets(h: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Iterator[Tensor]:
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    return (x[rows] for x, rows in zip(wide, mask, strict=True))


def _means(h: Float[Tensor, "b T D"], mask: Bool[Tensor, "b T"]) -> Float[Tensor, "b D"]:
    return torch.stack([x.mean(0) for x in _sets(h, mask)]) if len(h) else h.new_zeros(0, h.shape[-1])


def _evenly(x: Float[Tensor, "n D"], most: int) -> Float[Tensor, "m D"]:
    """At most `most` of the rows, the first and the last among them."""
    if len(x) <= most:
        return x
    return x[torch.arange(most, device=x.device) * (len(x) - 1) // (most - 1)]


def _huber(x: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """The mean Huber loss; 0 where there is nothing to compare, with a gradient of 0."""
    return functional.smooth_l1_loss(x, y) if x.numel() else x.sum()


def _norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... 1"]:
    """The norm; of 0 it is tiny and not 0, for the root has no gradient there."""
    return x.square().sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def _distances(x: Float[Tensor, "n D"]) -> Float[Tensor, " p"]:
    """The distances of distinct rows, divided by their mean."""
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    found = _norm(x[i] - x[j])[:, 0]
    return found / found.mean() if len(found) else found


def _angles(x: Float[Tensor, "n D"]) -> Float[Tensor, " t"]:
    """Cosines of the angles i j k at j, of distinct rows."""
    n = len(x)
    apart = x[None] - x[:, None]
    towards = apart / _norm(apart)  # [j, i, D]: from j to i
    i, k = torch.triu_indices(n, n, 1, device=x.device)
    vertex = torch.arange(n, device=x.device)[:, None]
    distinct = (vertex != i) & (vertex != k)
    return wide_product(towards, towards.transpose(1, 2))[:, i, k][distinct]
