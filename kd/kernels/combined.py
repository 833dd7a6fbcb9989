"""Several models' logits as one; the combination is made inside the chunk, so that no `[N, V]` exists here either."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.kernels.logits import Logits


@dataclass(frozen=True)
class MeanLogits:
    """The weighted mean of several models, in at least float32.

    of: "logits": sum_k w_k z_k, whose softmax is the normalised geometric mean prod_k p_k^w_k;
        "probabilities": log sum_k w_k softmax(z_k), the mixture.
    weights: positive; together 1.
    """

    members: Sequence[Logits]
    weights: Sequence[float]
    of: Literal["logits", "probabilities"]

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.members[0].n

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.members[0].size

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows, combined now; of the members' rows, two exist at a time."""
        total: Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            z = _wide(member.rows(index))
            if self.of == "logits":
                total = weight * z if total is None else total.add_(z, alpha=weight)
            else:
                part = z.log_softmax(-1).add_(math.log(weight))
                total = part if total is None else torch.logaddexp(total, part)
        assert total is not None
        return total

    def cast(self) -> "MeanLogits":
        """See `HeadLogits.cast`."""
        return replace(self, members=[member.cast() for member in self.members])


@dataclass(frozen=True)
class RoutedLogits:
    """Each row from one of several models.

    members: each model's own rows alone, in their order here.
    owner: which of `members` each row is from.
    """

    members: Sequence[Logits]
    owner: Int[Tensor, " n"]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.owner)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.members[0].size

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows, in at least float32."""
        owner, place = self.owner[index], self._place[index]
        pieces = [_wide(member.rows(place[owner == k])) for k, member in enumerate(self.members)]
        made = pieces[0].new_empty(len(owner), self.size)
        for k, piece in enumerate(pieces):
            made[owner == k] = piece.to(made.dtype)
        return made

    def cast(self) -> "RoutedLogits":
        """See `HeadLogits.cast`."""
        return replace(self, members=[member.cast() for member in self.members])

    @cached_property
    def _place(self) -> Int[Tensor, " n"]:
        """The index of each row among those of its owner."""
        place = torch.empty_like(self.owner)
        for k in range(len(self.members)):
            mine = self.owner == k
            place[mine] = torch.arange(int(mine.sum()), device=place.device)
        return place


def _wide(z: Float[Tensor, "c V"]) -> Float[Tensor, "c V"]:
    return z.to(torch.promote_types(z.dtype, torch.float32))
