"""Strategies that choose the next token from student and teacher: for the readers [student, teacher]."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.generators.sampling import Choose, Chosen, drawn, nucleus
from kd.generators.settings import Decoding


class Mixed(Choose):
    """A draw from p~ = alpha p + (1 - alpha) q, q the student's and p the teacher's distribution.

    MiniLLM (arXiv 2306.08543, section 2.2).

    Args:
        alpha: the teacher's share. 0 is the student alone, 1 the teacher alone.
        temperature: of both, before they are mixed; 0 is a choice between their likeliest ids.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, alpha: float, *, temperature: float = 1.0):
        Decoding(1, temperature=temperature).check()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is not the teacher's share of a mixture; set it between 0 and 1")
        self.temperature = temperature
        self.shares = [math.log(share) if share > 0 else -math.inf for share in (1 - alpha, alpha)]

    def __call__(self, logits: Sequence[Float[Tensor, "b V"]]) -> Chosen:
        """The ids, and log p~ of each."""
        parts = [share + tempered(z, self.temperature) for share, z in zip(self.shares, logits, strict=True)]
        return drawn(torch.logaddexp(*parts))


class Interleaved(Choose):
    """A proposal of the student, replaced by a draw from the teacher if not among the teacher's `top_k` likeliest.

    SKD (arXiv 2410.11325). An id y is written with probability

        q(y) [y among the top k] + p(y) * sum of q(v) over all v that are not,

    q what the student proposes from, p what the teacher writes from (which may be outside its own top k).

    Args:
        top_k: ids of the teacher, by its logits as they are. All of them: the student alone.
        temperature, top_p: of the student's proposals.
        teacher_temperature, teacher_top_p: of the teacher's draws.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        top_k: int,
        *,
        temperature: float,
        top_p: float = 1.0,
        teacher_temperature: float,
        teacher_top_p: float = 1.0,
    ):
        Decoding(1, temperature=temperature, top_p=top_p).check()
        Decoding(1, temperature=teacher_temperature, top_p=teacher_top_p).check()
        if top_k < 1:
            raise ValueError(f"top_k={top_k} would let no token of the student stand; set it to 1 or more")
        self.top_k = top_k
        self.student, self.teacher = (temperature, top_p), (teacher_temperature, teacher_top_p)
        self.kept: float | Tensor = 0.0  # stays on the device, so that no step waits for it
        self.proposed = 0

    def __call__(self, logits: Sequence[Float[Tensor, "b V"]]) -> Chosen:
        """The ids, and the log-probability of each, summed over both ways to it."""
        q, p = tempered(logits[0], *self.student), tempered(logits[1], *self.teacher)
        among = likeliest(logits[1], self.top_k)
        proposals, replacements = drawn(q)[0], drawn(p)[0]
        kept = _at(among, proposals)
        ids = torch.where(kept, proposals, replacements)
        own = _at(q.masked_fill(~among, -math.inf), ids)
        replaced = q.masked_fill(among, -math.inf).logsumexp(-1) + _at(p, ids)
        self.kept, self.proposed = self.kept + kept.sum(), self.proposed + len(kept)
        return ids, torch.logaddexp(own, replaced)

    def take_kept(self) -> tuple[float, float]:
        """The number of proposals that were kept, and of all proposals, since the last call."""
        counts = float(self.kept), float(self.proposed)
        self.kept, self.proposed = 0.0, 0
        return counts


def tempered(logits: Float[Tensor, "b V"], temperature: float, top_p: float = 1.0) -> Float[Tensor, "b V"]:
    """Log-probabilities at a temperature, 0 being all on the likeliest id; -inf outside the nucleus of `top_p`."""
    if temperature == 0:
        return torch.zeros_like(logits).masked_fill(~likeliest(logits, 1), -math.inf)
    logprobs = (logits / temperature).log_softmax(-1)
    if top_p == 1:
        return logprobs
    values, order = nucleus(logprobs, top_p)
    return torch.full_like(logprobs, -math.inf).scatter(-1, order, values.log_softmax(-1))


def likeliest(logits: Float[Tensor, "b V"], k: int) -> Bool[Tensor, "b V"]:
    """True at the ids of the k largest logits; of equal ones, at some."""
    top = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top, True)


def _at(values: Tensor, ids: Int[Tensor, " b"]) -> Tensor:
    return values.gather(-1, ids[:, None])[:, 0]
