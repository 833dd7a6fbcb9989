"""Divergences that depend on the source of the text: one on the teacher's, another on the student's.

All text that is not the student's own counts as the teacher's, the records' references included. With half of the
responses from each side, the mean over all of them is half of each side's mean.

With p = (1/2, 1/2), q = (1/4, 3/4) and m = (3/8, 5/8), the Jensen-Shannon loss is KL(p || m) = 1/2 log(4/3) +
1/2 log(4/5) = 0.0323 on the teacher's text, KL(q || m) = 1/4 log(2/3) + 3/4 log(6/5) = 0.0354 on the student's:

>>> import torch
>>> from kd.objectives.contrastive import two_sided_jsd
>>> from kd.types import WRITERS
>>> p, q = torch.tensor([[0.5, 0.5]] * 2), torch.tensor([[0.25, 0.75]] * 2)
>>> two_sided_jsd(q.log(), p.log(), torch.tensor([WRITERS.index("teacher"), WRITERS.index("student")]))
tensor([0.0323, 0.0354])
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from kd.objectives.divergence import Fraction, Positive, kl, log_probs, temperature_scale
from kd.signals import of_two_sides
from kd.types import WRITERS, Progress

UpToTwo = Annotated[float, Field(ge=0, le=2)]

OWN = WRITERS.index("student")
SMALLEST_ALPHA = 0.01  # of the adaptive skew, as released


@of_two_sides
def two_sided_jsd(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    written_by: Int[Tensor, "*n"],
    *,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """KL(p || m) on the teacher's text or KL(q || m) on the student's, m = (p + q)/2; phi' = -p/(2 m), or
    log(q/m) - q/(2 m). The Jensen-Shannon loss of f-Distill (arXiv 2307.15190).

    Half of the responses from each side make 1/2 KL(p || m) + 1/2 KL(q || m), each on the text of its own side; `jsd`
    takes both on one text.

    Args:
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    value = _skewed(p, q, written_by == OWN, torch.full_like(p[..., 0], 0.5), mixture_gradient=True)
    return value * temperature_scale(temperature, temperature_squared)


@of_two_sides
def distillm2(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    written_by: Int[Tensor, "*n"],
    progress: Progress,
    *,
    alpha: Fraction = 0.1,
    beta: UpToTwo = 1.0,
    final_beta: UpToTwo = 1.5,
    rise: Positive = 0.5,
    mixture_gradient: bool = False,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """(2 - beta) KL(p || m) on the teacher's text or beta KL(q || m) on the student's, m = alpha of the first + (1 -
    alpha) of the second; phi' = -(2 - beta) (1 - alpha) p/m, or beta log(q/m). DistiLLM-2 (arXiv 2503.07067).

    The teacher's text is pulled up by a skew forward KL, the student's pushed down by a skew reverse KL. `beta` grows
    in a straight line to `final_beta` over the first `rise` of the run. Half of the responses from each side and
    reduction=sequence make the paper's loss; the released code, without its factor 1/2, is twice that, with beta = 1.

    Args:
        alpha: share of the text's own model in the mixture, 0 to 1; 0: plain KLs, 1: the value is 0. 0.1 in the paper.
        beta: weight of the student's text at the start, 0 to 2; the teacher's has 2 - beta. 1 in the paper: both alike.
        final_beta: beta at the end of the rise, 0 to 2; 1.5 in the paper, 1 (no change) in the released code.
        rise: share of the run over which beta changes, above 0; later steps keep `final_beta`, and above 1 the run ends
            before it is reached. 0.5: the first half.
        mixture_gradient: differentiate through the student in its own mixture, too: - beta alpha q/m more in phi' of
            the reverse KL. False in the released code, which holds its mixture constant.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    own, skew = written_by == OWN, torch.full_like(p[..., 0], alpha)
    value = _skewed(p, q, own, skew, mixture_gradient=mixture_gradient)
    value = _weighted(value, own, _risen(progress, beta, final_beta, rise))
    return value * temperature_scale(temperature, temperature_squared)


@of_two_sides
def distillm2_adaptive(
    student_logits: Float[Tensor, "*n V"],
    teacher_logits: Float[Tensor, "*n V"],
    student_mean_logprobs: Float[Tensor, "*n"],
    teacher_mean_logprobs: Float[Tensor, "*n"],
    written_by: Int[Tensor, "*n"],
    progress: Progress,
    *,
    alpha: Fraction = 0.1,
    teacher_gap: Positive = 0.1,
    student_gap: Positive = 0.1,
    beta: UpToTwo = 1.0,
    final_beta: UpToTwo = 1.5,
    rise: Positive = 0.5,
    mixture_gradient: bool = False,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
) -> Float[Tensor, "*n"]:
    """(2 - beta) KL(p || m) on the teacher's text or beta KL(q || m) on the student's, m = a of the first + (1 - a) of
    the second, a = clip(1 - (1 - alpha) gap / d, 0.01, alpha), d = the writer's lead in the response's mean token
    probability; phi' = -(2 - beta) (1 - a) p/m, or beta log(q/m), a held constant. DistiLLM-2 (arXiv 2503.07067).

    Of a response y, d = P - Q on the teacher's text and Q - P on the student's (+ 1e-5, as released), P and Q the
    geometric means of the token probabilities under p and q. To first order the divergence is (1 - a) d, which this
    holds at (1 - alpha) gap: from d = gap upwards a = alpha, below it a falls, to 0.01 at nine tenths of gap (alpha =
    0.1). Where the writer is the less sure of the two (d < 0), a = alpha.

    P and Q are given with each row, so the head still runs in chunks; to make them, it is evaluated once more for each
    model, without gradient. The released code takes for gap the mean d until its first log, and then never reads it (so
    that a = alpha: `distillm2`).

    Args:
        alpha: largest skew, 0 to 1, the paper's alpha_0; 0: plain KLs. 0.1 in the paper.
        teacher_gap: typical d on the teacher's text, above 0, a difference of probabilities; the larger, the smaller a.
        student_gap: the same on the student's text. The paper measures both.
        beta: weight of the student's text at the start, 0 to 2; the teacher's has 2 - beta. 1 in the paper: both alike.
        final_beta: beta at the end of the rise, 0 to 2; 1.5 in the paper, 1 (no change) in the released code.
        rise: share of the run over which beta changes, above 0; later steps keep `final_beta`, and above 1 the run ends
            before it is reached. 0.5: the first half.
        mixture_gradient: differentiate through the student in its own mixture, too: - beta alpha q/m more in phi' of
            the reverse KL. False in the released code, which holds its mixture constant.
        temperature: divisor of both models' logits, above 0; 1 leaves them as they are, higher ones flatten.
        temperature_squared: multiply the value by temperature^2, which keeps gradients at the scale of temperature 1.
    """
    p, q = log_probs(teacher_logits, temperature), log_probs(student_logits, temperature)
    own = written_by == OWN
    surer = teacher_mean_logprobs.to(p.dtype).exp() - student_mean_logprobs.to(p.dtype).exp()
    share = torch.where(own, student_gap / (1e-5 - surer), teacher_gap / (1e-5 + surer))
    skew = (1 - (1 - alpha) * share).clamp(min(SMALLEST_ALPHA, alpha), alpha)
    value = _skewed(p, q, own, skew, mixture_gradient=mixture_gradient)
    value = _weighted(value, own, _risen(progress, beta, final_beta, rise))
    return value * temperature_scale(temperature, temperature_squared)


def _skewed(
    p: Float[Tensor, "*n V"],
    q: Float[Tensor, "*n V"],
    own: Bool[Tensor, "*n"],
    alpha: Float[Tensor, "*n"],
    *,
    mixture_gradient: bool,
) -> Float[Tensor, "*n"]:
    """KL(a || alpha a + (1 - alpha) b), (a, b) = (q, p) where `own`, else (p, q).

    mixture_gradient: differentiate through q in its own mixture, too.
    """
    wide = torch.promote_types(p.dtype, q.dtype)
    p, q, own = p.to(wide), q.to(wide), own.unsqueeze(-1)
    log_alpha, log_rest = alpha.to(wide).log().unsqueeze(-1), torch.log1p(-alpha.to(wide)).unsqueeze(-1)
    first, second = torch.where(own, q, p), torch.where(own, p, q)
    held = first if mixture_gradient else first.detach()  # p has no gradient anyway
    return kl(first, torch.logaddexp(held + log_alpha, second + log_rest))


def _risen(progress: Progress, beta: float, final_beta: float, rise: float) -> float:
    return beta + (final_beta - beta) * min(1.0, progress.fraction / rise)


def _weighted(value: Float[Tensor, "*n"], own: Bool[Tensor, "*n"], beta: float) -> Float[Tensor, "*n"]:
    return torch.where(own, beta * value, (2 - beta) * value)
