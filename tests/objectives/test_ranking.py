"""Ranking losses by hand on groups of responses, and what may not change them.

Run: python -m pytest tests/objectives/test_ranking.py
"""

from functools import partial
from itertools import permutations
from math import exp, log

import pytest
import torch
from torch import Tensor

from kd.objectives.ranking import best_likelihood, listwise, margin, margin_mse, pro, rrhf, scores
from kd.signals import PAIR, domain

# One prompt, three responses of 1, 2 and 4 tokens, all of a response's tokens of one probability:
# s = (-1, -2, -4) log 2 whatever their lengths, log q(y) = (-1, -4, -16) log 2
LENGTHS = torch.tensor([1, 2, 4])
MASK = torch.arange(5) < LENGTHS[:, None]


def of_scores(*scores: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Log-probabilities of responses whose mean is `scores`."""
    return torch.tensor(scores, dtype=dtype)[:, None] * MASK


def rewards(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


STUDENT = of_scores(-log(2), -2 * log(2), -4 * log(2))
TEACHER = of_scores(-3 * log(2), -log(2), -2 * log(2))

BY_REWARD = {
    "rrhf": rrhf,
    "pro": pro,
    "pro by order": partial(pro, by_reward_gap=False),
    "best": best_likelihood,
}
BY_TEACHER = {"listwise": listwise, "margin": margin, "margin_mse": margin_mse}
every = pytest.mark.parametrize("loss", [*BY_REWARD.values(), *BY_TEACHER.values()], ids=[*BY_REWARD, *BY_TEACHER])


def called(loss, student=STUDENT, teacher=TEACHER, r=(2.0, 3.0, 1.0), mask=MASK, group_size=3):
    if loss in BY_TEACHER.values():
        return loss(student, teacher, mask, group_size)
    return loss(student, mask, rewards(*r), group_size)


def test_scores_are_means_of_a_token():
    assert scores(STUDENT, MASK, 3)[0].tolist() == pytest.approx([-log(2), -2 * log(2), -4 * log(2)])
    sums = scores(STUDENT, MASK, 3, length_normalised=False)
    assert sums[0].tolist() == pytest.approx([-log(2), -4 * log(2), -16 * log(2)])


# ---- in the order of the rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "expected"),
    [
        ((3, 2, 1), 0),  # s falls as r does
        # r_1 < r_2: s_1 - s_2 = 1; r_3 is least and s_3 too
        ((2, 3, 1), 1),
        # all the wrong way round: (s_1 - s_2) + (s_1 - s_3) + (s_2 - s_3) = 1 + 3 + 2
        ((1, 2, 3), 6),
        # equals are not compared: r_1 = r_2 < r_3: 3 + 2
        ((1, 1, 2), 5),
        ((1, 1, 1), 0),
    ],
)
def test_rrhf(r, expected):
    assert rrhf(STUDENT, MASK, rewards(*r), 3).tolist() == pytest.approx([expected * log(2)])


def test_rrhf_pushes_only_what_stands_wrong():
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rrhf(student, MASK, rewards(2, 3, 1), 3).sum(), student)
    # d/ds_1 = 1 over one token, d/ds_2 = -1 over two
    expected = torch.tensor([[1.0], [-0.5], [0.0]], dtype=torch.float64) * MASK
    torch.testing.assert_close(gradient, expected)


def test_equal_scores_have_no_hinge():
    assert rrhf(of_scores(-1.0, -1.0, -1.0), MASK, rewards(1, 2, 3), 3).item() == 0


def test_the_best_response_is_learnt():
    assert best_likelihood(STUDENT, MASK, rewards(1, 3, 2), 3).tolist() == pytest.approx([4 * log(2)])
    mean = best_likelihood(STUDENT, MASK, rewards(1, 3, 2), 3, length_normalised=True)
    assert mean.tolist() == pytest.approx([2 * log(2)])
    assert best_likelihood(STUDENT, MASK, rewards(1, 3, 3), 3).tolist() == pytest.approx([4 * log(2)])  # the first


def test_pro_by_hand():
    # exp(s) = (1/2, 1/4, 1/16), best first: log[(8 + 4 + 1)/8] + log[(4 + 1)/4]
    by_order = pro(STUDENT, MASK, rewards(30, 20, 10), 3, by_reward_gap=False)
    assert by_order.tolist() == pytest.approx([log(13 / 8) + log(5 / 4)])
    # r = (3, 1, 0): c_1 = (3, 2, 3), c_2 = (1, 1): the largest gap stands on the diagonal.
    # k = 1: 2^-3, 2^-4, 2^-12 -> log[(2^-3 + 2^-4 + 2^-12) / 2^-3]; k = 2: 2^-2, 2^-4 -> log(5/4)
    expected = log(1 + 2**-1 + 2**-9) + log(5 / 4)
    assert pro(STUDENT, MASK, rewards(3, 1, 0), 3).tolist() == pytest.approx([expected])
    # The same responses in another order
    order = [2, 0, 1]
    shuffled = pro(STUDENT[order], MASK[order], rewards(0, 3, 1), 3)
    assert shuffled.tolist() == pytest.approx([expected])


def test_pro_of_two_is_the_logistic_loss():
    for s_1, s_2 in ((-1.0, -3.0), (-2.0, -0.5)):
        student, mask = torch.tensor([[s_1], [s_2]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
        expected = log(1 + exp(s_2 - s_1))
        assert pro(student, mask, rewards(5, 1), 2, by_reward_gap=False).item() == pytest.approx(expected)
        assert pro(student, mask, rewards(1, 0), 2).item() == pytest.approx(expected)
        # a gap of 4 is an inverse temperature of 4
        assert pro(student, mask, rewards(5, 1), 2).item() == pytest.approx(log(1 + exp(4 * (s_2 - s_1))))


def test_equal_rewards_do_not_push_under_pro():
    student = STUDENT.clone().requires_grad_()
    value = pro(student, MASK, rewards(1, 1, 1), 3)
    assert value.tolist() == pytest.approx([log(3) + log(2)])
    assert (torch.autograd.grad(value.sum(), student)[0] == 0).all()


def test_orders_have_probabilities_that_sum_to_one():
    # Plackett and Luce: exp(-loss) over all orders
    values = [pro(STUDENT, MASK, rewards(*r), 3, by_reward_gap=False) for r in permutations((1, 2, 3))]
    assert torch.cat(values).neg().exp().sum().item() == pytest.approx(1)


# ---- in the order of the teacher's scores ----------------------------------------------------------------------------


def test_listwise_by_hand():
    # exp(s) = (8, 4, 1)/16 -> Q = (8, 4, 1)/13; exp(u) = (1, 4, 2)/8 -> P = (1, 4, 2)/7
    p, q = [1 / 7, 4 / 7, 2 / 7], [8 / 13, 4 / 13, 1 / 13]
    student = STUDENT.clone().requires_grad_()
    value = listwise(student, TEACHER, MASK, 3)
    assert value.tolist() == pytest.approx([sum(a * log(a / b) for a, b in zip(p, q, strict=True))])
    (gradient,) = torch.autograd.grad(value.sum(), student)  # Q - P, spread over a response's tokens
    assert gradient.sum(-1).tolist() == pytest.approx([b - a for a, b in zip(p, q, strict=True)])


def test_a_small_tau_weighs_the_best_alone():
    # P -> 1 at the teacher's best (the second), Q -> 1 at the student's (the first), tau log Q_2 -> s_2 - s_1
    tau = 0.01
    assert tau * listwise(STUDENT, TEACHER, MASK, 3, tau=tau).item() == pytest.approx(log(2), rel=1e-6)


def test_listwise_vanishes_up_to_a_constant():
    # A softmax does not know what is added to all scores.
    assert listwise(STUDENT, STUDENT - 0.5 * MASK, MASK, 3).item() == pytest.approx(0, abs=1e-15)
    assert margin_mse(STUDENT, STUDENT - 0.5 * MASK, MASK, 3).item() == pytest.approx(0, abs=1e-15)


def test_margin_by_hand():
    # The teacher orders 2, 3, 1: s in this order (-2, -4, -1) log 2.
    # pairs: -4 - -2 = -2, -1 - -2 = 1 (two places), -1 - -4 = 3
    loss = partial(margin, STUDENT, TEACHER, MASK, 3)
    assert loss(margin=0.0).tolist() == pytest.approx([4 * log(2)])
    # m = log 2: max(0, -2 + 1) + (1 + 2) + (3 + 1)
    assert loss(margin=log(2)).tolist() == pytest.approx([7 * log(2)])
    assert margin(TEACHER, TEACHER, MASK, 3, margin=0.5 * log(2)).item() == 0  # one apart each, and two places two
    assert margin(TEACHER, TEACHER, MASK, 3, margin=2 * log(2)).item() > 0


def test_margins_are_to_be_equal():
    # d = s - u = (2, -1, -2) log 2: differences 3, 4, 1: (9 + 16 + 1)/3
    assert margin_mse(STUDENT, TEACHER, MASK, 3).tolist() == pytest.approx([26 / 3 * log(2) ** 2])


# ---- invariances -----------------------------------------------------------------------------------------------------


@every
def test_padding_changes_nothing(loss):
    for side in ((3, 0), (0, 3)):
        student, teacher = (torch.nn.functional.pad(x, side, value=-9.0) for x in (STUDENT, TEACHER))
        mask = torch.nn.functional.pad(MASK, side)
        torch.testing.assert_close(called(loss, student, teacher, mask=mask), called(loss))


@every
def test_the_order_of_responses_changes_nothing(loss):
    for order in map(list, permutations(range(3))):
        r = [(2.0, 3.0, 1.0)[i] for i in order]
        torch.testing.assert_close(called(loss, STUDENT[order], TEACHER[order], r, MASK[order]), called(loss))


@every
def test_prompts_are_independent(loss):
    student, teacher = torch.cat([STUDENT, 0.5 * TEACHER]), torch.cat([TEACHER, STUDENT])
    values = called(loss, student, teacher, (2.0, 3.0, 1.0, 1.0, 5.0, 3.0), MASK.repeat(2, 1))
    first = called(loss)
    second = called(loss, 0.5 * TEACHER, STUDENT, (1.0, 5.0, 3.0))
    torch.testing.assert_close(values, torch.cat([first, second]))


@every
def test_one_response_cannot_be_ranked(loss):
    with pytest.raises(ValueError, match="group_size=1: there is nothing to rank"):
        called(loss, group_size=1)


@every
def test_one_value_for_each_prompt(loss):
    assert domain(loss) == PAIR
