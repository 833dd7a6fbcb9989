"""Comparisons at spans of text that student and teacher both generate in whole tokens (`kd.types.Spans`).

The probability of a span is the product of its tokens', whatever their number. Its value stands at the
student's first row of it; other rows are 0, and averages divide by all rows.

A span is one token of the student with probability 1/4 and two of the teacher with 1/2 and 1. At temperature 1 the two
classes (the span, anything else) have KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log(4/3) = 0.1438:

>>> import torch
>>> from kd.objectives.spans import approximate_likelihood
>>> from kd.types import Spans
>>> span = Spans(*(torch.tensor([i]) for i in (0, 1, 0, 2, 0)))
>>> q, p = torch.tensor([0.25]).log(), torch.tensor([0.5, 1.0]).log()
>>> approximate_likelihood(q, p, span, temperature=1.0)
tensor([0.1438])
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from kd.kernels.logits import label_logprobs
from kd.kernels.ranges import spread
from kd.objectives.divergence import NonNegative, Positive, forward_kl, kl, log_probs, mixture
from kd.objectives.transport import sorted_difference
from kd.types import Boundaries, Spans

Between = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
NEARLY_CERTAIN = -1e-6  # nats; log(1 - exp(x)) has no end at x = 0


def merged_spans(
    student_logits: Float[Tensor, "n V"],
    native_teacher_logits: Float[Tensor, "m U"],
    labels: Int[Tensor, " n"],
    teacher_labels: Int[Tensor, " m"],
    spans: Spans,
    id_map: Int[Tensor, " U"],
    *,
    beta: Between = 0.5,
    temperature: Positive = 1.0,
    matched_weight: NonNegative | None = 1.0,
    unmatched_weight: NonNegative | None = 1.0,
) -> Float[Tensor, "*n"]:
    """matched_weight * JSD_beta(p~, q~ on shared ids) + unmatched_weight * sum_i |p~_(i) - q~_(i)| on the others.

    p~(v) = p(v) prod_k p(y_k | y_<k) over the later tokens y_2 .. of the span as they stand, so that p~(y_1) is
    the probability of the span; q~ alike. The mass of other continuations is not renormalised.
    JSD_beta is the generalised Jensen-Shannon divergence of measures, as in `generalized_jsd` (beta weighs the
    teacher); the others are sorted and filled up as in `universal_logit`.

    The general online logit distillation of TRL ("GOLD", its hybrid loss, made of that of arXiv 2402.12030; another
    paper has the same name), where both weights are None by default. It counts a padded head's ids among the teacher's,
    and leaves the second part out where one side has no other ids.

    Args:
        beta: weight of the teacher in the mixture of shared ids, between 0 and 1. 0.5 in TRL.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are. 0.9 in TRL for one tokenizer,
            1 for two.
        matched_weight: weight of the shared ids' part, at least 0; null: the share of the teacher's ids that have a
            counterpart.
        unmatched_weight: weight of the others' part, at least 0; null: the share of the teacher's ids that have none.
    """
    q = _merged(log_probs(student_logits, temperature), labels, spans.start, spans.end)
    p = _merged(log_probs(native_teacher_logits, temperature), teacher_labels, spans.teacher_start, spans.teacher_end)
    theirs = (id_map >= 0).nonzero()[:, 0]
    ours = id_map[theirs]
    matched = _measures_jsd(p[:, theirs], q[:, ours], beta)
    unmatched = sorted_difference(_without(p, theirs).exp(), _without(q, ours).exp())
    share = len(theirs) / len(id_map)
    matched = matched * (share if matched_weight is None else matched_weight)
    unmatched = unmatched * (1 - share if unmatched_weight is None else unmatched_weight)
    return _at_first(matched + unmatched, spans, len(student_logits))


def approximate_likelihood(
    student_logprobs: Float[Tensor, " n"],
    native_teacher_logprobs: Float[Tensor, " m"],
    spans: Spans,
    *,
    divergence: Callable = forward_kl,
    temperature: Positive = 100.0,
) -> Float[Tensor, "*n"]:
    """D((p^(1/tau), 1 - p^(1/tau)), (q^(1/tau), 1 - q^(1/tau))), p and q the likelihoods of a span, tau `temperature`.

    Approximate likelihood matching (arXiv 2503.20083, eq. 5): an f-divergence, binarised. Its spans are the minimal
    ones, without a correction for those at whose end one tokenizer would have gone on: `debiased_likelihood` has it.

    Args:
        divergence: D, a function of the student's and the teacher's logits, here of the two classes, such as
            `kd.objectives.divergence.forward_kl`.
        temperature: tau, above 0, which keeps the likelihoods of long spans away from 0; 1: the likelihoods as they
            are. Gradients are about tau times smaller than at 1. 100 in the paper.
    """
    q = _sums(student_logprobs, spans.start, spans.end)
    p = _sums(native_teacher_logprobs, spans.teacher_start, spans.teacher_end)
    return _at_first(_between(p, q, divergence, temperature), spans, len(student_logprobs))


def debiased_likelihood(
    student_logits: Float[Tensor, "n V"],
    native_teacher_logits: Float[Tensor, "m U"],
    labels: Int[Tensor, " n"],
    teacher_labels: Int[Tensor, " m"],
    spans: Spans,
    boundaries: Boundaries,
    *,
    divergence: Callable = forward_kl,
    temperature: Positive = 100.0,
    least: Share = 0.1,
) -> Float[Tensor, "*n"]:
    """D((p^(1/tau), 1 - p^(1/tau)), (q^(1/tau), 1 - q^(1/tau))), p and q the likelihoods of a span and its end.

    The likelihood of "app" is that of all texts that begin so where tokens are bytes; where "apple" is a token, texts
    that go on with "le" are excluded. B are the ids before which every tokenizer cuts
    (`kd.types.Boundaries`); to `approximate_likelihood`'s p and q the probability of B at the row after the span is
    multiplied, 1 for the last span of a response. tau is `temperature`.

    Approximate likelihood matching with its correction of chunks (arXiv 2503.20083), and its choice of chunks, as the
    authors' code has them (`append_space`, `merge_by_space_prob` with 0.1; their loss is the cross-entropy, which has
    the gradient of forward KL).

    Args:
        divergence: D, a function of the student's and the teacher's logits, here of the two classes, such as
            `kd.objectives.divergence.forward_kl`.
        temperature: tau, above 0, which keeps the likelihoods of long spans away from 0; 1: the likelihoods as they
            are. Gradients are about tau times smaller than at 1. 100 in the paper.
        least: probability of B, 0 to below 1; a span after which the teacher's is not above it is joined with the next,
            for there both likelihoods are of a rare event. 0: none is. 0.1 in the authors' scripts.
    """
    q, p = label_logprobs(student_logits, labels), label_logprobs(native_teacher_logits, teacher_labels)
    more = spans.sequence == spans.sequence.roll(-1)
    more[-1:] = False
    ends = spans.end[more], spans.teacher_end[more]
    q_stop = q.new_zeros(len(more)).masked_scatter(more, _mass(student_logits[ends[0]], boundaries.student))
    p_stop = p.new_zeros(len(more)).masked_scatter(more, _mass(native_teacher_logits[ends[1]], boundaries.teacher))
    last = p_stop > math.log(least) if least else torch.ones_like(more)
    spans = _joined(spans, last)
    q = _sums(q, spans.start, spans.end) + q_stop[last]
    p = _sums(p, spans.teacher_start, spans.teacher_end) + p_stop[last]
    return _at_first(_between(p, q, divergence, temperature), spans, len(student_logits))


def _mass(logits: Float[Tensor, "S V"], ids: Bool[Tensor, " V"]) -> Float[Tensor, " S"]:
    """The log of the probability of the ids together."""
    return log_probs(logits)[:, ids].logsumexp(-1).clamp(max=0)


def _joined(spans: Spans, last: Bool[Tensor, " S"]) -> Spans:
    """Spans that each end with one of the `last`, which holds the last of every response."""
    first = torch.ones_like(last)
    first[1:] = last[:-1]
    ends = spans.end[last], spans.teacher_end[last]
    return Spans(spans.start[first], ends[0], spans.teacher_start[first], ends[1], spans.sequence[last])


def _between(
    p: Float[Tensor, " S"], q: Float[Tensor, " S"], divergence: Callable, temperature: float
) -> Float[Tensor, " S"]:
    """The divergence of log-likelihoods, each as one of two classes."""
    # a difference of one nat is one of 1/tau here, and its divergence 1/tau^2: below float32's resolution
    return divergence(_binary(q.double() / temperature), _binary(p.double() / temperature)).to(q.dtype)


def _merged(
    log: Float[Tensor, "r V"], labels: Int[Tensor, " r"], start: Int[Tensor, " S"], end: Int[Tensor, " S"]
) -> Float[Tensor, "S V"]:
    """Log-measures of spans: the first row's, times the probability of the later tokens as they stand."""
    observed = log.gather(-1, labels[:, None])[:, 0]
    return log[start] + _sums(observed, start + 1, end)[:, None]


def _sums(values: Float[Tensor, " r"], start: Int[Tensor, " S"], end: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    """values[start:end].sum() of every span, in at least float32."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    span, rows = spread(start, end)
    return wide.new_zeros(len(start)).index_add(0, span, wide[rows])


def _measures_jsd(p_log: Float[Tensor, "S K"], q_log: Float[Tensor, "S K"], beta: float) -> Float[Tensor, " S"]:
    """beta sum p log(p/m) + (1 - beta) sum q log(q/m), m = beta p + (1 - beta) q.

    Never negative, whatever the masses: what `kl` adds to each half, m - p and m - q, cancels in the sum.
    """
    m = mixture(p_log, q_log, beta)
    return beta * kl(p_log, m) + (1 - beta) * kl(q_log, m)


def _without(log: Float[Tensor, "S V"], ids: Int[Tensor, " K"]) -> Float[Tensor, "S W"]:
    rest = torch.ones(log.shape[1], dtype=torch.bool, device=log.device)
    rest[ids] = False
    return log[:, rest]


def _binary(log: Float[Tensor, " S"]) -> Float[Tensor, "S 2"]:
    """The pair (log x, log(1 - x)) of log x <= 0."""
    log = log.clamp(max=NEARLY_CERTAIN)
    return torch.stack([log, torch.log(-torch.expm1(log))], dim=-1)


def _at_first(values: Float[Tensor, " S"], spans: Spans, n: int) -> Float[Tensor, "*n"]:
    return values.new_zeros(n).index_add(0, spans.start, values)
