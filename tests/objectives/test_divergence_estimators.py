"""What estimators of reverse KL from sampled tokens learn, by summing over every token there is.

y ~ q, r = log q(y) - log p(y). As a *direct* loss, whose samples are constants: k1 = r learns nothing, k2 = r^2/2
reverse KL, k3 = e^-r - 1 + r forward KL; -r as a reward of a policy gradient learns reverse KL (Schulman, 2020).

Run: python -m pytest tests/objectives/test_divergence_estimators.py
"""

import pytest
import torch

from kd.objectives.divergence import forward_kl, reverse_kl
from tests.objectives.cases import P, Q, draw, gradient, logits_of, value

ESTIMATORS = {"k1": lambda r: r, "k2": lambda r: r**2 / 2, "k3": lambda r: (-r).exp() - 1 + r}


def expected(estimator):
    """sum_y q(y) estimator(r_y), the probabilities of sampling held constant, as a loss of logits."""

    def loss(student_logits, teacher_logits):
        q = student_logits.log_softmax(-1)
        r = q - teacher_logits.log_softmax(-1)
        return (q.detach().exp() * estimator(r)).sum(-1)

    return loss


def policy_gradient(student_logits, teacher_logits):
    """sum_y q(y) sg(r_y) log q(y), the probabilities of sampling held constant."""
    q = student_logits.log_softmax(-1)
    r = (q - teacher_logits.log_softmax(-1)).detach()
    return (q.detach().exp() * r * q).sum(-1)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_values(name):
    assert value(expected(ESTIMATORS[name])) == pytest.approx(value(reverse_kl), rel=1e-12)


def test_k2_is_a_biased_value():
    # (.4 log^2(.4/.7) + .4 log^2(.4/.2) + .2 log^2(.2/.1)) / 2 = .2068, and reverse KL .1920
    assert value(expected(ESTIMATORS["k2"])) == pytest.approx(0.2068, abs=5e-5)
    assert value(reverse_kl) == pytest.approx(0.1920, abs=5e-5)


@pytest.mark.parametrize(
    ("loss", "learns"),
    [
        (expected(ESTIMATORS["k1"]), None),
        (expected(ESTIMATORS["k2"]), reverse_kl),
        (expected(ESTIMATORS["k3"]), forward_kl),
        (policy_gradient, reverse_kl),
    ],
    ids=["k1", "k2", "k3", "policy gradient"],
)
@pytest.mark.parametrize("logits", [(logits_of(Q), logits_of(P)), (draw(8, 11), draw(8, 11, seed=1))], ids=["3", "11"])
def test_what_an_estimator_learns(loss, learns, logits):
    found = gradient(loss, *logits)
    target = torch.zeros_like(found) if learns is None else gradient(learns, *logits)
    torch.testing.assert_close(found, target, rtol=1e-10, atol=1e-12)
