"""Sorted transport: values by hand, a linear program beside Sinkhorn's plan, and what must not matter.

Run: python -m pytest tests/objectives/test_transport.py
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from kd.objectives.divergence import log_probs
from kd.objectives.transport import multi_level_transport, sinkhorn, sorted_difference, universal_logit
from kd.types import Pairs
from tests.objectives.cases import draw, logits_of


def beside(student, teacher, sequence=None) -> Pairs:
    sequence = [0] * len(student) if sequence is None else sequence
    return Pairs(*(torch.tensor(field, dtype=torch.long) for field in (student, teacher, sequence)))


# ---- universal logit distillation -----------------------------------------------------------------------------------


def test_by_hand():
    # q = (.2, .7, .1) -> .7 .2 .1; p over four ids = (.1, .4, .3, .2) -> .4 .3 .2 .1
    # |.4 - .7| + |.3 - .2| + |.2 - .1| + .1 = .6
    value = universal_logit(logits_of((0.2, 0.7, 0.1)), logits_of((0.1, 0.4, 0.3, 0.2)), beside([0], [0]))
    assert value.item() == pytest.approx(0.6)


def test_where_a_response_ends_is_left_out_on_request():
    """Rows 0 1 | 2: the second pair and the third end a response; the first alone is compared."""
    student, teacher = draw(3, 5).requires_grad_(), draw(3, 7, seed=1)
    pairs = beside([0, 1, 2], [0, 1, 2], [0, 0, 1])._replace(ends=torch.tensor([False, True, True]))
    values = universal_logit(student, teacher, pairs, end_token=False)
    assert values[1:].tolist() == [0, 0]
    assert values[0] == universal_logit(student, teacher, pairs)[0] > 0
    values.sum().backward()
    assert (student.grad.abs().sum(1) > 0).tolist() == [True, False, False]


def test_an_alignment_that_does_not_give_the_ends_of_responses_is_refused():
    with pytest.raises(ValueError, match="end_token=false, but the alignment does not mark where a response ends"):
        universal_logit(draw(1, 3), draw(1, 3), beside([0], [0]), end_token=False)


def test_rows_in_no_pair_are_nothing():
    student, teacher = draw(4, 5), draw(3, 7, seed=1)
    values = universal_logit(student, teacher, beside([3, 1], [0, 2]))
    alone = universal_logit(student[[3]], teacher[[0]], beside([0], [0]))
    assert values[[0, 2]].tolist() == [0, 0]
    torch.testing.assert_close(values[[3]], alone)


def test_names_of_tokens_do_not_matter():
    student, teacher = draw(4, 11), draw(4, 17, seed=1)
    pairs = beside([0, 1, 2, 3], [0, 1, 2, 3])
    for loss in (universal_logit, multi_level_transport):
        renamed = loss(student[:, torch.randperm(11)], teacher[:, torch.randperm(17)], pairs)
        torch.testing.assert_close(renamed, loss(student, teacher, pairs))


def test_temperature_is_of_both():
    student, teacher, pairs = draw(2, 5), draw(2, 5, seed=1), beside([0, 1], [0, 1])
    hot = universal_logit(student, teacher, pairs, temperature=3.0)
    torch.testing.assert_close(hot, universal_logit(student / 3, teacher / 3, pairs))


def test_the_gradient_goes_through_the_order():
    # q = (.6, .3, .1) and p = (.5, .25, .25): dL/dq = sign(q - p) in q's order = (+, +, -)
    student = logits_of((0.1, 0.6, 0.3)).requires_grad_()
    universal_logit(student, logits_of((0.25, 0.25, 0.5)), beside([0], [0])).sum().backward()
    q, slope = np.array([0.1, 0.6, 0.3]), np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose(student.grad[0], q * (slope - (q * slope).sum()), atol=1e-12)


def test_no_response_at_all():
    empty = beside([], [])
    for loss in (universal_logit, multi_level_transport):
        assert loss(draw(0, 5), draw(0, 7), empty).shape == (0,)
        assert loss(draw(2, 5), draw(0, 7), empty).tolist() == [0, 0]


def test_the_longer_vocabulary_is_paid_for():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert sorted_difference(p, q).item() == sorted_difference(q, p).item() == pytest.approx(1.0)


# ---- Sinkhorn -------------------------------------------------------------------------------------------------------


def test_a_plan_of_two_by_two_by_hand():
    # cost (0 1; 1 0): by symmetry the plan is (a b; b a), a + b = 1, a / b = e^(1 / epsilon)
    epsilon = 0.5
    plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), epsilon=epsilon, iterations=50)
    a = 1 / (1 + math.exp(-1 / epsilon))
    torch.testing.assert_close(plan, torch.tensor([[a, 1 - a], [1 - a, a]], dtype=torch.float64))


def test_an_uneven_plan_of_two_by_two_by_hand():
    # scaling rows and columns of K = exp(-C / epsilon) keeps K11 K22 / (K12 K21) = e^((1 + 2 - 0 - .5) / epsilon)
    cost, epsilon = torch.tensor([[0.0, 1.0], [2.0, 0.5]]).double(), 0.5
    plan = sinkhorn(cost, epsilon=epsilon, iterations=400)
    # doubly stochastic 2 x 2: (a 1-a; 1-a a), so (a / (1 - a))^2 is that ratio
    root = math.exp((1.0 + 2.0 - 0.0 - 0.5) / epsilon / 2)
    a = root / (1 + root)
    torch.testing.assert_close(plan, torch.tensor([[a, 1 - a], [1 - a, a]], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_with_little_entropy_it_is_the_linear_program():
    n, cost = 5, torch.rand(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    best = linprog(cost.numpy().ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.ones(2 * n)).fun
    plan = sinkhorn(cost, epsilon=0.002, iterations=3000)
    assert (plan * cost).sum().item() == pytest.approx(best, rel=1e-3)
    torch.testing.assert_close(plan.sum(1), torch.ones(n).double())


# ---- multi-level ----------------------------------------------------------------------------------------------------


def test_one_row_by_hand():
    # p = (.5, .3, .2), q = (.6, .1, .3), ranks within a response of one row: q sorted (.6, .3, .1)
    # |.1| + 0 + |.1| = .2; one row is moved onto one row, at the same cost; -sum p log q
    p, q = logits_of((0.5, 0.3, 0.2)), logits_of((0.6, 0.1, 0.3))
    log = -(0.5 * math.log(0.6) + 0.3 * math.log(0.3) + 0.2 * math.log(0.1))
    value = multi_level_transport(q, p, beside([0], [0]), temperature=1.0, log_weight=0.1, sequence_weight=0.7)
    assert value.item() == pytest.approx(0.2 + 0.1 * log + 0.7 * 0.2)


def test_ranks_are_those_of_the_response_and_only_the_first_count():
    # summed over the two rows q has (1.0, .7, .3), so its order is a b c in both rows, though row 1 alone says b a c
    q = logits_of((0.7, 0.1, 0.2), (0.3, 0.6, 0.1))
    p = logits_of((0.7, 0.1, 0.2), (0.3, 0.6, 0.1))
    pairs = beside([0, 1], [0, 1])
    values = multi_level_transport(q, p, pairs, temperature=1.0, top=2, log_weight=0.0, sequence_weight=0.0)
    assert values.tolist() == [0, 0]
    p = logits_of((0.7, 0.2, 0.1), (0.3, 0.1, 0.6))  # b and c change places: ranks a c b, so the same vectors
    torch.testing.assert_close(
        multi_level_transport(q, p, pairs, temperature=1.0, top=3, log_weight=0.0, sequence_weight=0.0),
        torch.zeros(2, dtype=torch.float64),
    )


def test_a_sequence_in_another_order_costs_tokens_but_little_transport():
    student = draw(6, 9, scale=4.0)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    settings = {"temperature": 1.0, "log_weight": 0.0, "epsilon": 0.01, "iterations": 300}
    pairs = beside(list(range(6)), list(range(6)))
    tokens = multi_level_transport(student, student[order], pairs, sequence_weight=0.0, **settings)
    both = multi_level_transport(student, student[order], pairs, sequence_weight=1.0, **settings)
    assert tokens.sum() > 1
    assert (both - tokens).sum() < 0.05 * tokens.sum()


def test_responses_do_not_see_each_other():
    student, teacher = draw(5, 9), draw(6, 12, seed=1)
    pairs = beside([0, 1, 2, 3, 4], [0, 1, 2, 4, 5], [0, 0, 0, 1, 1])
    together = multi_level_transport(student, teacher, pairs)
    first = multi_level_transport(student[:3], teacher[:3], beside([0, 1, 2], [0, 1, 2]))
    second = multi_level_transport(student[3:], teacher[4:], beside([0, 1], [0, 1]))
    torch.testing.assert_close(together, torch.cat([first, second]))
    mixed = torch.tensor([4, 2, 0, 3, 1])  # pairs may come in any order
    shuffled = multi_level_transport(student, teacher, Pairs(*(field[mixed] for field in pairs[:3])))
    torch.testing.assert_close(shuffled, together)


def test_the_gradient_is_that_of_finite_differences():
    student, teacher, pairs = draw(3, 5), draw(3, 6, seed=1), beside([0, 1, 2], [0, 1, 2])
    assert torch.autograd.gradcheck(lambda z: multi_level_transport(z, teacher, pairs), student.requires_grad_())
    assert log_probs(student).shape == (3, 5)
