r"""Teacher targets that hold K ids of each row and, of the rest, its mass.

Student and teacher are mapped to the same K + 1 classes, the K held ids and everything else, inside the chunk: a term
of `student_logits` and `teacher_logits` is then called on `[c, K + 1]` and needs no code for sparsity. The class
"everything else" has the logit log sum exp of the logits that are not held, so that softmax over the classes gives
exactly the probabilities of the ids, and of their union. The teacher's part in the last class is set by the tail rule:

`tail_bucket`  its mass outside the K ids. Both sides are distributions over K + 1 classes, so every divergence has a
               meaning, and an f-divergence is never larger than on the full vocabulary (data processing) and grows
               with K. TRL's server and async trainers (default), DistillKit `symmetric_uniform`.
`renormalise`  nothing: p~ = p / m on the K ids, m their mass, 0 elsewhere; the student keeps the full vocabulary. The
               same as the full loss against p~, for divergences that are finite where p~ = 0. DistillKit `zero`,
               NeMo-RL `zero_outside_topk` (forward KL), axolotl's eager path, tinker (as cross-entropy).
`zero`         nothing, and p is not renormalised either: sum_K p (log p - log q), forward KL only. It equals
               m KL(p~ || q) + m log m, so its gradient is m (q - p~). verl (which then clamps the value at 0), NeMo-RL
               with no renormalisation.
`sampled`      weights w in place of p, whose expectation is p: sum_k w_k (log p_k - log q_k), forward KL only, for it
               alone is linear in p: value and gradient are unbiased. Random-sampling KD (arXiv 2503.16870).

Not offered: both sides renormalised inside the K ids (NeMo-RL's default, ms-swift, axolotl's Liger path, ModelOpt,
TRL without its tail), which leaves the student's mass outside unpenalised.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd.signals import separated

TailRule = Literal["tail_bucket", "renormalise", "zero"]
Rule = Literal["tail_bucket", "renormalise", "zero", "sampled"]
EMPTY = -1  # in `ids`: rows that hold fewer than K ids
EQUAL = 1e-5  # nats


@dataclass(frozen=True)
class SparseLogits:
    """A teacher at n rows over `size` ids, of which each row holds at most K.

    logprobs: log p of the held ids under softmax(z / temperature), anything where the id is EMPTY.
    tail: log of the mass of all other ids; -inf where there is none.
    weights: of sampled targets, in place of p; 0 where the id is EMPTY.
    """

    ids: Int[Tensor, "n K"]
    logprobs: Float[Tensor, "n K"]
    tail: Float[Tensor, " n"]
    size: int
    rule: Rule
    temperature: float = 1.0
    weights: Float[Tensor, "n K"] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    def __getitem__(self, rows: slice) -> "SparseLogits":
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        ids, logprobs, tail = self.ids[rows], self.logprobs[rows], self.tail[rows]
        return SparseLogits(ids, logprobs, tail, self.size, self.rule, self.temperature, weights)

    def mass(self) -> Float[Tensor, " n"]:
        """The teacher's mass on the held ids, between 0 and 1."""
        return -torch.expm1(self.tail)

    def classes(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n C"]:
        """Logits of the K + 1 classes such that softmax(. / temperature) is that of `logits`, summed over classes."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature == 1.0:
            return _Classes.apply(wide, self.ids)
        return _Classes.apply(wide / self.temperature, self.ids) * self.temperature

    def everything(self) -> Float[Tensor, "n C"]:
        """The teacher's log p on the classes, times the temperature."""
        held = self.logprobs.masked_fill(self.ids == EMPTY, -math.inf)
        return torch.cat([held, self.tail[:, None]], 1) * self.temperature

    def target(self) -> Float[Tensor, "n C"]:
        """The teacher under `rule`, as logits of the classes."""
        if self.rule == "tail_bucket":
            return self.everything()
        log_weights = self.log_weights() * self.temperature
        return torch.cat([log_weights, torch.full_like(log_weights[:, :1], -math.inf)], 1)

    def log_weights(self) -> Float[Tensor, "n K"]:
        """The log of the weights in place of p, -inf where the id is EMPTY."""
        if self.weights is not None:
            return self.weights.log()
        return self.logprobs.masked_fill(self.ids == EMPTY, -math.inf)


def evaluated(term: Callable, given: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Values and metrics of `term(**given)`; with sparse rows, on their classes and under their rule."""
    sparse = next((signal for signal in given.values() if isinstance(signal, SparseLogits)), None)
    if sparse is None:
        return separated(term(**given))
    mapped = {name: _on_classes(signal, sparse) for name, signal in given.items() if name.endswith("_logits")}
    value, metrics = separated(term(**{**given, **mapped}))
    if sparse.rule in ("tail_bucket", "renormalise"):
        return value, metrics
    mass = sparse.log_weights().exp().sum(-1).to(value.dtype)
    return mass * (value - _of_weights(term, {**given, **mapped}, sparse)), metrics


@torch.no_grad()
def _of_weights(term: Callable, given: Mapping[str, Any], sparse: SparseLogits) -> Tensor:
    """The part of a divergence of the normalised weights w~ beside log p - log q: KL(w~ || p); 0 for a cross-entropy.

    The two are distinguished at p against itself, where a cross-entropy is 0 only if p is certain, and both agree.
    """
    p = sparse.everything().to(given["student_logits"])
    teachers = [name for name, signal in given.items() if name.endswith("teacher_logits")]
    at_equality, _ = separated(term(**{**given, "student_logits": p, **dict.fromkeys(teachers, p)}))
    value, _ = separated(term(**{**given, "student_logits": p}))
    return torch.where(at_equality.abs() < EQUAL, value, 0.0)


def _on_classes(signal: Any, sparse: SparseLogits) -> Tensor:
    return signal.target() if isinstance(signal, SparseLogits) else sparse.classes(signal)


class _Classes(torch.autograd.Function):
    """[z at the ids, log sum exp of the others]: two passes over `[n, V]` forward, one back, one copy kept."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, ids: Tensor) -> Tensor:
        empty = ids == EMPTY
        at = torch.where(empty, ids[:, :1], ids)  # a row's first id is never EMPTY
        held = z.gather(1, at).masked_fill_(empty, -math.inf)
        rest = z.scatter(1, at, -math.inf)
        tail = rest.logsumexp(1, keepdim=True)
        ctx.save_for_backward(at, empty, rest, tail)
        return torch.cat([held, tail], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        at, empty, rest, tail = ctx.saved_tensors
        of_held, of_tail = gradients[0][:, :-1], gradients[0][:, -1:]
        dz = (rest - tail.masked_fill(tail.isneginf(), 0.0)).exp_().mul_(of_tail)
        return dz.scatter_add_(1, at, of_held.masked_fill(empty, 0.0)), None
