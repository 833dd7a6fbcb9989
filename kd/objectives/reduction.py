"""The averages of values over an optimizer step, which are taken here alone.

An optimizer step covers a window of micro-batches on every rank. The denominators of its terms are counted over all of
them (`Counts`, after the rollout), so that splitting a window into micro-batches or over ranks changes nothing.

Of two responses, one token with the value 4 and three with 1 each, the mean over tokens is 7/4, that over responses
(4 + 1)/2:

>>> import torch
>>> from kd.objectives.reduction import Counts, reduce
>>> values = torch.tensor([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
>>> counts = Counts(tokens=4.0, responses=2.0, groups=2.0)
>>> reduce(values, values > 0, counts, domain="B T")
tensor(1.7500)
>>> reduce(values, values > 0, counts, domain="B T", reduction="sequence")
tensor(2.5000)
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kd.signals import PAIR, POSITION, RESPONSE, ROW
from kd.types import WRITERS, Batch

Reduction = Literal["token", "sequence", "sum"]
STUDENT = WRITERS.index("student")


@dataclass(frozen=True)
class Counts:
    """Numbers of tokens, responses and groups in one optimizer step, over accumulation and ranks."""

    tokens: float  # response tokens
    responses: float  # responses that have at least one such token
    groups: float  # prompts, or pairs, that have at least one such response
    own_tokens: float = 0.0  # of the responses that the student generated
    own_responses: float = 0.0

    def among(self, responses: Literal["all", "student", "other"]) -> "Counts":
        """The counts of the student's own responses, or of all others; their groups are not counted."""
        if responses == "all":
            return self
        if responses == "student":
            return Counts(self.own_tokens, self.own_responses, 0.0)
        return Counts(self.tokens - self.own_tokens, self.responses - self.own_responses, 0.0)


def count(batches: Iterable[Batch]) -> Float[Tensor, "5"]:
    """The rank's tokens, responses, groups, and own of the first two; to be summed over ranks and given to `Counts`."""
    totals = torch.zeros(len(fields(Counts)), dtype=torch.float64)
    for batch in batches:
        mask = batch.student.mask
        answers = mask.any(-1)
        groups = answers.view(-1, batch.group_size).any(-1)
        own = torch.zeros_like(answers) if batch.written_by is None else batch.written_by == STUDENT
        counted = (mask, answers, groups, mask[own], answers[own])
        totals += torch.tensor([x.sum().item() for x in counted], dtype=torch.float64)
    return totals


def row_weights(
    mask: Bool[Tensor, "B T"],
    counts: Counts,
    reduction: Reduction,
    *,
    chosen: Bool[Tensor, "B T"] | None = None,
    places: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """The weight of each loss row (the True positions of `mask`, in order), so that sum(weights * values) is

    token:    the mean over all response tokens of the step (DistiLLM, TRL)
    sequence: the mean over responses of each response's mean (GKD's 1/L_y, DistiLLM-2)
    sum:      the plain sum.

    chosen: those of these positions that count, by `counts`; the others weigh 0, so a value must be finite there too.
        None: all.
    places: the loss rows in the flat batch (`kd.types.Sequences.places`); None: they are found here, for which a host
        waits for its GPU.
    """
    chosen = mask if chosen is None else chosen
    places = mask.flatten().nonzero()[:, 0] if places is None else places
    lengths = chosen.sum(-1, keepdim=True).to(torch.float32)
    if reduction == "token":
        weights = torch.full_like(lengths, 1.0 / max(counts.tokens, 1.0))
    elif reduction == "sequence":
        weights = 1.0 / (lengths * max(counts.responses, 1.0))
    else:
        weights = torch.ones_like(lengths)
    return torch.where(chosen, weights, 0.0).flatten().index_select(0, places)


def reduce(
    values: Float[Tensor, "..."],
    mask: Bool[Tensor, "B T"],
    counts: Counts,
    *,
    domain: str,
    reduction: Reduction = "token",
    places: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """This micro-batch's share of the step's average of `values`.

    `domain` is what the values run over (`kd.signals.domain`): "*n" rows, "B T" positions, "B" responses or "P" pairs.
    Positions without loss, and responses or groups that have nothing else, are dropped, not multiplied by zero, so NaN
    or inf there do not matter. Sums are made in at least float32. `places` as for `row_weights`.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if domain in (ROW, POSITION):
        places = mask.flatten().nonzero()[:, 0] if places is None else places
        at_rows = values if domain == ROW else values.flatten().index_select(0, places)
        return (at_rows * row_weights(mask, counts, reduction, places=places)).sum()
    answered = mask.any(-1)
    values = torch.where(answered if domain == RESPONSE else answered.view(len(values), -1).any(-1), values, 0.0)
    denominator = {RESPONSE: counts.responses, PAIR: counts.groups}[domain]
    return values.sum() if reduction == "sum" else values.sum() / max(denominator, 1.0)
