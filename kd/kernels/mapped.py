"""Logits of another vocabulary, read in this one's ids."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.kernels.logits import Logits


@dataclass
class MappedLogits:
    """Another vocabulary's logits in this one's ids, at other rows.

    source: `m` rows over U ids.
    ids:    this vocabulary's id of each of those ids, -1 where there is none. Probabilities of one id are added up.
    size:   ids of this vocabulary.
    where:  the source's row of each row, -1 where there is none: those are uniform, and not to be used.
    spread: the probability of ids without a counterpart falls evenly on all ids. False: it is left out, so that a
            softmax renormalises what remains.
    report: called with the summed lost probability, and the number, of the rows that were made.
    """

    source: Logits
    ids: Int[Tensor, " U"]
    size: int
    where: Int[Tensor, " n"]
    spread: bool = False
    report: Callable[[Tensor, int], None] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.where)

    def rows(self, index: slice | Int[Tensor, " c"]) -> Float[Tensor, "c V"]:
        """Some of the rows, mapped now, in at least float32."""
        where = self.where[index]
        there = where >= 0
        z = self.source.rows(where[there])
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        mapped, lost = _mapped(z, self.ids, self.size)
        if self.report is not None:
            self.report(lost.sum(), len(lost))
        if self.spread:
            norm = z.logsumexp(-1, keepdim=True)
            mapped = torch.logaddexp(mapped - norm, (lost / self.size).log()[:, None])
        made = mapped.new_zeros(len(where), self.size)
        made[there] = mapped
        return made

    def cast(self) -> "MappedLogits":
        """The same with a source in autocast's dtype; see `HeadLogits.cast`."""
        return replace(self, source=self.source.cast())


def _mapped(
    z: Float[Tensor, "c U"], ids: Int[Tensor, " U"], size: int
) -> tuple[Float[Tensor, "c V"], Float[Tensor, " c"]]:
    """Logits under new ids, -inf for those without an old id, and the probability of old ids without a new one."""
    mapped = (ids >= 0).nonzero()[:, 0]
    targets = ids[mapped]
    kept = z if len(mapped) == len(ids) else z[:, mapped]
    made = z.new_full((len(z), size), -torch.inf)
    if len(targets.unique()) == len(targets):
        made[:, targets] = kept
    else:
        top = kept.amax(-1, keepdim=True)
        made = (z.new_zeros(len(z), size).index_add_(1, targets, (kept - top).exp())).log_() + top
    if len(mapped) == len(ids):
        return made, z.new_zeros(len(z))
    outside = z.index_fill(1, mapped, -torch.inf).logsumexp(-1) - z.logsumexp(-1)
    return made, outside.exp()
