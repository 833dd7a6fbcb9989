"""What a signature declares, and what it is told when it declares something else.

Run: python -m pytest tests/test_signals.py
"""

from functools import partial
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kd.objectives.divergence import cross_entropy, forward_kl, generalized_jsd
from kd.signals import SIGNALS, domain, is_row_wise, of_role, requires
from kd.types import Progress


class Annealed(nn.Module):
    """A stateful objective: hyperparameters in `__init__`, signals in `forward`."""

    def __init__(self, rate: float = 0.5, width: int = 0):
        super().__init__()
        self.rate = rate
        self.register_buffer("seen", torch.zeros(()))
        if width:
            self.projection = nn.Linear(width, width)

    def forward(
        self, student_logits: Float[Tensor, "*n V"], teacher_logits: Float[Tensor, "*n V"], progress: Progress
    ) -> Float[Tensor, "*n"]:
        return forward_kl(student_logits, teacher_logits) * progress.fraction * self.rate


def policy_ratio(
    student_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    group_size: int,
    *,
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    raise NotImplementedError


def preference(student_logprobs: Float[Tensor, "B T"], *, beta: float = 0.1) -> Float[Tensor, " P"]:
    raise NotImplementedError


def sequence_score(student_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
    raise NotImplementedError


def moments(student_logits: Float[Tensor, "n V"], teacher_logits: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    raise NotImplementedError


def labelled(student_logits: Float[Tensor, "*n V"], labels: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    raise NotImplementedError


def whole_sequences(student_logits: Float[Tensor, "*n V"], rewards: Float[Tensor, " B"]) -> Float[Tensor, "*n"]:
    raise NotImplementedError


def pooled(student_logits: Float[Tensor, "*n V"]) -> Float[Tensor, " P"]:
    raise NotImplementedError


# ---- what is asked for ----


def test_the_vocabulary_is_derived_from_the_nouns():
    assert {"student_logits", "teacher_logits", "native_teacher_hidden", "reference_logprobs"} <= SIGNALS
    assert {"labels", "mask", "rewards", "behaviour_logprobs", "group_size", "progress"} <= SIGNALS
    assert not {"student", "teacher", "records", "lengths", "logits"} & SIGNALS


def test_a_function_requires_what_stands_left_of_the_star():
    assert requires(forward_kl) == {"student_logits", "teacher_logits"}
    assert requires(cross_entropy) == {"student_logprobs"}
    assert requires(policy_ratio) == {"student_logprobs", "behaviour_logprobs", "rewards", "group_size"}


def test_binding_hyperparameters_changes_nothing():
    bound = partial(partial(generalized_jsd, beta=0.3), temperature=2.0)
    assert requires(bound) == {"student_logits", "teacher_logits"}
    assert domain(bound) == "*n"
    assert is_row_wise(bound)


def test_a_module_requires_what_its_forward_takes():
    assert requires(Annealed(rate=0.1)) == {"student_logits", "teacher_logits", "progress"}
    assert requires(Annealed.forward) == requires(Annealed())  # before anything is built


def test_fields_of_a_role():
    names = frozenset({"teacher_logits", "native_teacher_hidden", "student_logits", "student_hidden", "labels"})
    assert of_role("student", names) == {"logits", "hidden"}
    assert of_role("teacher", names) == {"logits"}
    assert of_role("native_teacher", names) == {"hidden"}
    assert of_role("reference", names) == frozenset()


# ---- what the values run over ----


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (forward_kl, "*n"),
        (Annealed(), "*n"),
        (policy_ratio, "B T"),
        (preference, "P"),
        (partial(preference, beta=1.0), "P"),
        (sequence_score, "B"),
    ],
)
def test_domain(objective, expected):
    assert domain(objective) == expected


@pytest.mark.parametrize("objective", [forward_kl, cross_entropy, labelled, Annealed(), partial(forward_kl)])
def test_row_wise(objective):
    assert is_row_wise(objective)


@pytest.mark.parametrize("objective", [policy_ratio, preference, sequence_score, whole_sequences, pooled])
def test_not_row_wise(objective):
    assert not is_row_wise(objective)


def test_a_term_with_parameters_of_its_own_is_not_run_in_chunks():
    # A chunk makes gradients of hidden states and head; those of a projection would be lost in silence.
    learned = Annealed(width=3)
    assert not is_row_wise(learned)
    assert is_row_wise(learned.requires_grad_(False))


# ---- what is refused ----


def test_an_unknown_signal_is_named_beside_the_known_ones():
    def focal(student_logits: Tensor, teacher_logit: Tensor, *, gamma: float = 2.0) -> Float[Tensor, "*n"]: ...

    with pytest.raises(ValueError, match=r"focal requires \['teacher_logit'\], which nothing provides.*teacher_logits"):
        requires(focal)


def test_a_hyperparameter_left_of_the_star_is_refused_with_its_place():
    def focal(student_logits: Tensor, gamma: float = 2.0) -> Float[Tensor, "*n"]: ...

    with pytest.raises(ValueError, match=r"\['gamma'\].*hyperparameters stand right of the \*"):
        requires(partial(focal))


def test_arguments_without_a_name_are_refused():
    def swallows(student_logits: Tensor, **options: Any) -> Float[Tensor, "*n"]: ...
    def gathers(*signals: Tensor) -> Float[Tensor, "*n"]: ...

    with pytest.raises(ValueError, match=r"swallows takes \*\*options; spell its arguments out"):
        requires(swallows)
    with pytest.raises(ValueError, match=r"gathers takes \*signals; spell its arguments out"):
        requires(gathers)


class Unannotated(nn.Module):
    def forward(self, student_logits: Float[Tensor, "*n V"]):
        raise NotImplementedError


def averaged(student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Unannotated(), r"Unannotated returns an unannotated value; annotate it as one of .*\*n.*unreduced"),
        (averaged, r"averaged returns a scalar; annotate it as one of .*unreduced"),
        (moments, "moments returns n; annotate it as one of"),
    ],
)
def test_a_result_without_a_domain_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        domain(objective)
