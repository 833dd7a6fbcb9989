"""k1, k2 and k3 over every response there is, and what is refused.

Run: python -m pytest tests/objectives/test_policy_estimators.py
"""

import math

import pytest
import torch
from torch import Tensor

from kd.components.signatures import check_call
from kd.objectives.divergence import forward_kl, reverse_kl
from kd.objectives.estimators import ESTIMATORS, k1, k2, k3, kl_to_reference, sampled_reverse_kl
from tests.objectives import trees
from tests.objectives.trees import STUDENT, TEACHER, expected, gradient, logprobs


def direct(estimator):
    """E_{y ~ q} sum_t estimator, the samples held constant."""

    def loss(student: Tensor) -> Tensor:
        return expected(estimator(logprobs(student), logprobs(TEACHER)), STUDENT)

    return loss


def whole(divergence):
    """E_{y ~ q} sum_t divergence after y_<t, the prefixes held constant."""

    def loss(student: Tensor) -> Tensor:
        return expected(divergence(trees.logits(student), trees.logits(TEACHER)), STUDENT)

    return loss


@pytest.mark.parametrize(
    ("loss", "learns"),
    [
        (k1, None),
        (k2, reverse_kl),
        (k3, forward_kl),
        (lambda q, p: sampled_reverse_kl(q, p, q.detach()), reverse_kl),
        (kl_to_reference, forward_kl),
        (lambda q, p: kl_to_reference(q, p, estimator="k2"), reverse_kl),
    ],
    ids=["k1", "k2", "k3", "sampled_reverse_kl", "kl_to_reference", "kl_to_reference k2"],
)
def test_the_expected_gradient_of_a_direct_loss(loss, learns):
    found = gradient(direct(loss), STUDENT)
    target = torch.zeros_like(found) if learns is None else gradient(whole(learns), STUDENT)
    torch.testing.assert_close(found, target, rtol=1e-10, atol=1e-12)


def test_the_expected_gradient_on_samples_of_another_temperature():
    """y ~ b, b the student at temperature 0.7 with the same prefixes held constant: weighed by q/b, it is the same."""
    heated = STUDENT / 0.7

    def weighed(student: Tensor) -> Tensor:
        value = sampled_reverse_kl(logprobs(student), logprobs(TEACHER), logprobs(heated), cap=1e6)
        ratio_before = (logprobs(STUDENT) - logprobs(heated)).exp()
        return expected(value / ratio_before, STUDENT)  # E_q[x b/q] is E_b[x] of one token after a prefix of q

    torch.testing.assert_close(gradient(weighed, STUDENT), gradient(direct(k2), STUDENT), rtol=1e-10, atol=1e-12)
    assert logprobs(heated).sub(logprobs(STUDENT)).abs().max() > 0.1


def test_the_weight_of_a_sample_is_bounded():
    q, p, b = (torch.tensor([x]).double().log() for x in (0.5, 0.25, 0.05))  # q/b = 10
    assert sampled_reverse_kl(q, p, b).item() == pytest.approx(3 * math.log(2) ** 2 / 2)
    assert sampled_reverse_kl(q, p, b, cap=20.0).item() == pytest.approx(10 * math.log(2) ** 2 / 2)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased_values(estimator):
    assert direct(estimator)(STUDENT).item() == pytest.approx(whole(reverse_kl)(STUDENT).item(), rel=1e-12)


def test_values_by_hand():
    # q(y) = 1/2, p(y) = 1/4: r = log 2
    q, p = torch.tensor([0.5]).double().log(), torch.tensor([0.25]).double().log()
    found = {name: estimator(q, p).item() for name, estimator in ESTIMATORS.items()}
    r = math.log(2)
    assert found == pytest.approx({"k1": r, "k2": r * r / 2, "k3": 0.5 - 1 + r}, rel=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_token_that_the_student_would_never_write_is_finite(estimator):
    q = torch.tensor([-300.0], requires_grad=True)
    value = ESTIMATORS[estimator](q, torch.zeros(1))
    value.sum().backward()
    assert value.isfinite().all()
    assert q.grad.isfinite().all()


NODE = {"_target_": "kd.objectives.estimators.sampled_reverse_kl", "_partial_": True}
REFUSED = [
    (sampled_reverse_kl, "k1", "expected gradient of zero.*take k2"),
    (sampled_reverse_kl, "k3", "forward KL, the wrong direction; take k2"),
    (kl_to_reference, "k1", "expected gradient of zero"),
]


@pytest.mark.parametrize(("term", "estimator", "reason"), REFUSED)
def test_a_direct_loss_in_the_wrong_direction_is_refused(term, estimator, reason):
    with pytest.raises(ValueError, match=reason):
        term(*[torch.zeros(1)] * (3 if term is sampled_reverse_kl else 2), estimator=estimator)


@pytest.mark.parametrize(("term", "estimator", "reason"), REFUSED)
def test_it_is_refused_before_anything_is_loaded(term, estimator, reason):
    with pytest.raises(ValueError, match=rf"^x\.estimator={estimator}: k\d as a direct loss.*{reason}"):
        check_call("x", NODE | {"estimator": estimator}, term)
    check_call("x", NODE | {"estimator": "k2"}, term)


def test_another_name_is_refused_with_the_three():
    with pytest.raises(ValueError, match=r"k1.*k2.*k3"):
        check_call("x", NODE | {"estimator": "k4"}, sampled_reverse_kl)
