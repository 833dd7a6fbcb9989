"""Hidden states of two models, compared position by position or as sets.

h is the student's hidden state, projected where the widths differ, g the teacher's, both `[D]` at one position of one
pair of layers (`kd.objectives.layers`); values are summed over the pairs. Positions are those that predict a response;
with `positions=all` also the prompt's, never padding. Arithmetic after the projection is in float32 or wider.

Projections and mixtures belong to the term: they are in checkpoints and in `objective.safetensors` beside the student,
not inside it. They learn at `optim.lr`, or with an optimizer apart at the term's own `lr`.

With h = (3, 4) and g = (4, 3), both of length 5, the squared error is (1 + 1)/2 = 1, the cosine 24/25, so its distance
0.04, and the squared distance of unit vectors 2 x 0.04 = 0.08:

>>> import torch
>>> from kd.objectives.features import cosine_distance, normalised_error, squared_error
>>> h, g = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
>>> squared_error(h, g), cosine_distance(h, g), normalised_error(h, g)
(tensor(1.), tensor(0.0400), tensor(0.0800))
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kd.kernels.products import wide_product
from kd.objectives.divergence import Positive
from kd.objectives.layers import LayerMatch, Layers, Positions, Projection, compared, over_positions
from kd.types import Shape

ROWS = 512  # of a kernel matrix that exist at a time


def squared_error(h: Float[Tensor, "*n D"], g: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """The mean over features of (h - g)^2."""
    return (h - g).square().mean(-1)


def absolute_error(h: Float[Tensor, "*n D"], g: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """The mean over features of |h - g|."""
    return (h - g).abs().mean(-1)


def cosine_distance(h: Float[Tensor, "*n D"], g: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """1 - cos(h, g), between 0 and 2."""
    return 1 - functional.cosine_similarity(h, g, dim=-1)


def feature_cross_entropy(h: Float[Tensor, "*n D"], g: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """-sum_d softmax(g)_d log softmax(h)_d, in nats."""
    return -(g.softmax(-1) * h.log_softmax(-1)).sum(-1)


def normalised_error(h: Float[Tensor, "*n D"], g: Float[Tensor, "*n D"]) -> Float[Tensor, "*n"]:
    """|h / |h| - g / |g||^2 = 2 (1 - cos(h, g)), between 0 and 4."""
    return (functional.normalize(h, dim=-1) - functional.normalize(g, dim=-1)).square().sum(-1)


class _Matched(nn.Module):
    """A term over pairs of layers. Its parameters are made in `sized_for`, once both models are known."""

    match: LayerMatch

    def __init__(
        self, *, layers: Layers = "last", projection: Projection = "auto", positions: Positions = "response"
    ) -> None:
        super().__init__()
        self.layers, self.projection, self.positions = layers, projection, positions

    def sized_for(self, student: Shape, teacher: Shape) -> None:
        """Make the projections; raises ValueError, see `LayerMatch`."""
        self.match = LayerMatch(student, teacher, layers=self.layers, projection=self.projection)


class HiddenStates(_Matched):
    """One distance at each position, summed over pairs of layers."""

    @staticmethod
    def distance(h: Float[Tensor, "*n E"], g: Float[Tensor, "*n E"]) -> Float[Tensor, "*n"]:
        """The distance of features in float32 or wider, a value for each position."""
        raise NotImplementedError

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        teacher_hidden: tuple[Float[Tensor, "B T E"], ...],
        mask: Bool[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """A value for each position; see the class."""
        rows = compared(mask, real, self.positions)
        pairs = self.match(student_hidden, teacher_hidden, rows)
        values = sum((self.distance(wide(h), wide(g)) for h, g in pairs[1:]), start=self.distance(*map(wide, pairs[0])))
        return over_positions(values, rows, self.positions)


class HiddenMSE(HiddenStates):
    """1/D |h - g|^2; dL/dh = 2/D (h - g). Hints (FitNets, arXiv 1412.6550, eq. 3), averaged over features.

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    distance = staticmethod(squared_error)


class HiddenL1(HiddenStates):
    """1/D |h - g|_1; dL/dh = sign(h - g)/D. The second measure of the survey's table 2 (arXiv 2402.13116).

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    distance = staticmethod(absolute_error)


class HiddenCosine(HiddenStates):
    """1 - cos(h, g). The alignment of directions of DistilBERT (arXiv 1910.01108).

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    distance = staticmethod(cosine_distance)


class HiddenCrossEntropy(HiddenStates):
    """-sum_d softmax(g)_d log softmax(h)_d; dL/dh = softmax(h) - softmax(g). Survey's table 2 (arXiv 2402.13116).

    Its least value is the entropy of softmax(g), not 0.

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    distance = staticmethod(feature_cross_entropy)


class PatientKD(HiddenStates):
    """sum_d (h_d/|h| - g_d/|g|)^2. Patient knowledge distillation (arXiv 1908.09355), at every position.

    The paper compares the [CLS] token only, which decoders do not have. PKD-Skip is layers=skip and PKD-Last is
    layers=tail; both leave out the last layer, which the logits train.

    Args:
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    distance = staticmethod(normalised_error)


class HiddenMMD(_Matched):
    """mean_ij k(h_i, h_j) + mean_ij k(g_i, g_j) - 2 mean_ij k(h_i, g_j), the squared MMD of the tokens of a response.

    The biased estimator (i = j counts): never negative, 0 where both sets are the same in any order. One value for
    each response; a set is the tokens of one response (with positions=all, of its prompt too), so that values do not
    depend on what else is in a batch. MMD between features as in arXiv 1707.01219.

    Args:
        kernel: `linear`, k(x, y) = x y / D, compares means only; `rbf` is exp(-|x - y|^2 / (2 bandwidth^2)).
        bandwidth: of rbf, above 0, in units of the features; null makes 2 bandwidth^2 the mean squared distance within
            the union of both sets, as a constant.
        layers: pairs of layers, the student's first: `last`, `skip`, `tail`, `uniform`, pairs as [[0, 0], [2, 4]], 0
            the embeddings (`kd.objectives.layers.layer_pairs`), or `learned`, a mixture of all the teacher's.
        projection: from the student's width to the teacher's, without a bias: `linear` always, `auto` where the widths
            differ, `none` never (widths must be equal).
        positions: `response`: those that predict a response; `all`: the prompt's too.
    """

    def __init__(
        self,
        *,
        kernel: Literal["linear", "rbf"] = "rbf",
        bandwidth: Positive | None = None,
        layers: Layers = "last",
        projection: Projection = "auto",
        positions: Positions = "response",
    ) -> None:
        super().__init__(layers=layers, projection=projection, positions=positions)
        self.kernel, self.bandwidth = kernel, bandwidth

    def forward(
        self,
        student_hidden: tuple[Float[Tensor, "B T D"], ...],
        teacher_hidden: tuple[Float[Tensor, "B T E"], ...],
        mask: Bool[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
    ) -> Float[Tensor, " B"]:
        """A value for each response; 0 for one without a token."""
        rows = compared(mask, real, self.positions)
        sizes = rows.sum(-1).tolist()
        pairs = self.match(student_hidden, teacher_hidden, rows)
        return torch.stack([self._of_sets(wide(h), wide(g), sizes) for h, g in pairs]).sum(0)

    def _of_sets(self, h: Float[Tensor, "n E"], g: Float[Tensor, "n E"], sizes: list[int]) -> Float[Tensor, " B"]:
        of = squared_mmd_linear if self.kernel == "linear" else self._rbf
        return torch.stack(
            [of(x, y) if len(x) else x.sum() for x, y in zip(h.split(sizes), g.split(sizes), strict=True)]
        )

    def _rbf(self, x: Float[Tensor, "n E"], y: Float[Tensor, "m E"]) -> Float[Tensor, ""]:
        return squared_mmd_rbf(x, y, bandwidth=self.bandwidth)


def squared_mmd_linear(x: Float[Tensor, "n E"], y: Float[Tensor, "m E"]) -> Float[Tensor, ""]:
    """|mean x - mean y|^2 / E: the linear kernel needs no matrix."""
    return (x.mean(0) - y.mean(0)).square().mean()


def squared_mmd_rbf(
    x: Float[Tensor, "n E"], y: Float[Tensor, "m E"], *, bandwidth: float | None = None, rows: int = ROWS
) -> Float[Tensor, ""]:
    """The squared MMD of `HiddenMMD`; at most `rows` rows of a kernel matrix exist at a time, backwards too."""
    centre = y.detach().mean(0)  # distances stay, and lose fewer digits to what all tokens have in common
    x, y = x - centre, (y - centre).to(x.dtype)
    width = 2 * bandwidth**2 if bandwidth is not None else mean_squared_distance(torch.cat([x, y]))
    return _mean_rbf(x, x, width, rows) + _mean_rbf(y, y, width, rows) - 2 * _mean_rbf(x, y, width, rows)


@torch.no_grad()
def mean_squared_distance(x: Float[Tensor, "n E"]) -> Float[Tensor, ""]:
    """mean_ij |x_i - x_j|^2, which is twice the summed variance; at least the smallest positive number."""
    return (2 * x.var(0, correction=0).sum()).clamp(min=torch.finfo(x.dtype).tiny)


def _mean_rbf(x: Tensor, y: Tensor, width: float | Tensor, rows: int) -> Tensor:
    def of(piece: Tensor) -> Tensor:
        squared = piece.square().sum(-1, keepdim=True) + y.square().sum(-1) - 2 * wide_product(piece, y.T)
        return (-squared.clamp(min=0) / width).exp().sum()

    pieces = [checkpoint(of, piece, use_reentrant=False) for piece in x.split(rows)]
    return torch.stack(pieces).sum() / (len(x) * len(y))


def wide(features: Tensor) -> Tensor:
    """The features in at least float32."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
