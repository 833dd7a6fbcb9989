"""The terms of an objective, and the models' outputs that those of one stream of batches require."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor

from kd.schedules import Schedule
from kd.signals import FROM_ALIGNMENT, domain, is_row_wise, of_role, requires
from kd.training.observation import rows
from kd.training.optimization import Rate
from kd.types import WRITERS, Batch, Progress

STREAMS = ("main", "lm")  # the skill's records after the rollout; plain text of the corpus
Responses = Literal["all", "student", "other"]
CORRECT_THEMSELVES = ("policy", "preference")  # kinds of terms that correct for how their responses were drawn


@dataclass
class Term:
    """One summand of the objective. `lr` gives the term's own parameters an optimizer of their own.

    weight: absolute; a schedule for one that changes in the run. A term whose weight is 0 at a step is silent in it:
    no model is read for it, it is neither computed nor logged, and its own parameters get no gradient.
    responses: which it learns on, and is averaged over: all, the student's own, or all others ("other"; with
    rollout=demonstrated the teacher's). The term sees them all, so a group's mean stays what it is.
    stream: the batches on which it is computed. kind: terms of kinds other than "policy" and "preference" have
    their values per token multiplied by `Batch.importance_weights` where a rollout gives them, unless they read
    `behaviour_logprobs`, by which they correct themselves. (Values per response or per pair stay as they are: a token's
    weight does not apply to them.)
    importance_weighted: false leaves those weights out of this term.
    """

    loss: Any
    weight: float | Schedule = 1.0
    kind: str = "divergence"
    lr: Rate | None = None
    stream: str = STREAMS[0]
    responses: Responses = "all"
    importance_weighted: bool = True

    def __post_init__(self) -> None:
        self.wanted = requires(self.loss)
        self.domain = domain(self.loss)
        self.row_wise = is_row_wise(self.loss)
        self.on_teacher = bool(of_role("teacher", self.wanted))

    @property
    def student_fields(self) -> frozenset[str]:
        """The student's outputs that it reads; in a chunk, log-probabilities are computed from the logits."""
        fields = of_role("student", self.wanted)
        return (fields - {"logprobs"}) | {"logits"} if self.row_wise else fields

    @property
    def may_be_silent(self) -> bool:
        """True if its weight is 0 at any moment."""
        ends = (self.weight.start, self.weight.end) if isinstance(self.weight, Schedule) else (self.weight,)
        return min(ends) <= 0 <= max(ends)

    def weight_at(self, progress: Progress) -> float:
        """Its weight in the step after `progress.step` steps."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else self.weight

    def chosen(self, batch: Batch) -> Bool[Tensor, "B T"]:
        """The positions that it learns on; the batch's own mask where those are all.

        Raises ValueError where it learns on some responses alone and their writers are unknown.
        """
        mask = batch.student.mask
        if self.responses == "all":
            return mask
        if batch.written_by is None:
            raise ValueError(
                f"responses: {self.responses} needs the writer of each response, but the rollout names none"
            )
        own = batch.written_by == WRITERS.index("student")
        return mask & (own if self.responses == "student" else ~own)[:, None]

    def row_weights(self, weights: Tensor, aligned_mask: Tensor | None, batch: Batch) -> Tensor:
        """The weights of its rows: 0 where an alignment has no teacher output; the divisor stays the same."""
        if aligned_mask is not None and self.on_teacher:
            weights = weights * aligned_mask
        own = self.importance(batch)
        return weights if own is None else weights * rows(own, batch.student)

    def importance(self, batch: Batch) -> Tensor | None:
        """The importance weights `[B T]`, or None where its values count as they are."""
        corrects = self.kind in CORRECT_THEMSELVES or "behaviour_logprobs" in self.wanted
        return batch.importance_weights if self.importance_weighted and not corrects else None


class Demand:
    """The terms of one stream, and the fields of the models' outputs that they read together."""

    def __init__(self, terms: Mapping[str, Term]):
        self.terms = dict(terms)
        wanted = frozenset[str]().union(*(term.wanted for term in terms.values()))
        self.student = frozenset[str]().union(*(term.student_fields for term in terms.values()))
        self.teacher = of_role("teacher", wanted) | of_role("native_teacher", wanted)
        self.reference = of_role("reference", wanted)
        self.alignment = FROM_ALIGNMENT & wanted


def by_stream(objective: Mapping[str, Term]) -> dict[str, Demand]:
    """The streams that have terms."""
    found = {s: {n: term for n, term in objective.items() if term.stream == s} for s in STREAMS}
    return {stream: Demand(terms) for stream, terms in found.items() if terms}


def backward_passes(streams: Mapping[str, Sequence[Batch]]) -> list[list[tuple[str, Batch]]]:
    """Micro-batches that share a backward pass: each alone, but the last of every stream together.

    So every parameter that learns has a part in the last pass, after which gradients are summed over ranks.
    """
    alone = [[(stream, batch)] for stream, batches in streams.items() for batch in batches[:-1]]
    last = [(stream, batches[-1]) for stream, batches in streams.items() if batches]
    return [*alone, last] if last else alone
