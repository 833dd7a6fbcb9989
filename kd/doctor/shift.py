"""The self-test of the loss path: a student that is its own teacher has zero loss and gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kd.alignment.same import Same
from kd.data.sequences import Encoder
from kd.experiment.build import Parts
from kd.experiment.findings import Finding
from kd.models.language_model import LanguageModel
from kd.objectives.divergence import forward_kl
from kd.objectives.reduction import Counts, count
from kd.rollouts.offline import Offline
from kd.signals import of_role
from kd.teachers.self_teacher import Own
from kd.training.module import Distillation
from kd.training.terms import Term
from kd.types import Batch, Record, Sequences

VALUE, GRADIENT = 1e-5, 1e-4  # nats per response token; norm relative to that of the shifted teacher


def shift_self_test(parts: Parts, records: Sequence[Record]) -> Finding:
    """Check: teacher := student gives no divergence and no gradient; the same teacher one position off gives some.

    The student's own module computes both, on the records' sequences, in eval mode and the weights' precision.
    """
    terms = divergences(parts.module.objective)
    module = own_teacher(parts, terms)
    bounds: dict[str, Any] = {"max_length": parts.encoder.max_length, "max_tokens": parts.encoder.max_tokens}
    batches = Encoder(parts.encoder.student, None, **bounds).batches(records)
    value, gradient = value_and_gradient(module, batches)
    off, off_gradient = value_and_gradient(module, [replace(b, teacher=one_off(b.student)) for b in batches])
    name = "+".join(terms)
    fact = (
        f"{name} is {value:.1e} nats (gradient {gradient:.1e}) when the student teaches itself, "
        f"{off:.2g} ({off_gradient:.2g}) one position off"
    )
    if abs(value) > VALUE or gradient > GRADIENT * off_gradient:
        return Finding("FAIL", "self-test", fact, "rows of student and teacher do not belong together")
    if off <= max(VALUE, 10 * abs(value)):
        return Finding("WARN", "self-test", fact, "the student predicts the same everywhere, so the test is void")
    return Finding("PASS", "self-test", fact)


def divergences(objective: Mapping[str, Term]) -> dict[str, Term]:
    """The objective's divergences on all responses, each with weight 1; forward KL where there are none.

    Those from the student's starting point are left out: it teaches nothing, and no copy of it is kept here.
    """
    found = {
        name: replace(term, weight=1.0)
        for name, term in objective.items()
        if term.kind == "divergence" and term.responses == "all" and not of_role("reference", term.wanted)
    }
    return found or {"fkl": Term(forward_kl)}


def own_teacher(parts: Parts, terms: Mapping[str, Term]) -> Distillation:
    """The module of a run in which the student is also the teacher."""
    own: LanguageModel = parts.module.student
    optimization, seed = parts.module.optimization, parts.module.seed
    teacher = Own(mode="live")
    teacher.bind(own)
    return Distillation(own, teacher, terms, Offline(), Same(), parts.encoder, optimization, seed=seed)


def one_off(sequences: Sequences) -> Sequences:
    """The mask moved one position to the left: the teacher is read where it predicts the token before."""
    return replace(sequences, mask=torch.roll(sequences.mask, -1, dims=1))


def value_and_gradient(module: Distillation, batches: Sequence[Batch]) -> tuple[float, float]:
    """The loss of one optimizer step in nats per response token, and the norm of its gradient; no step is taken."""
    training = module.student.training
    module.eval()
    counts, total = Counts(*count(batches).tolist()), 0.0
    for batch in batches:
        loss = module.loss(batch, module.observe(batch), counts)
        loss.backward()
        total += loss.item()
    gradients = [p.grad.double().pow(2).sum() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    module.student.train(training)
    return total, float(torch.stack(gradients).sum().sqrt())
