"""Advantages over time by hand, and a value head that learns.

Run: python -m pytest tests/objectives/test_policy_critic.py
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kd.objectives.critic import PPO, value_error
from kd.objectives.returns import advantages_of, at_the_end, returns
from kd.signals import introduce
from kd.types import Progress, Shape
from tests.objectives.alone import values_of

ONES = torch.ones(1, 3, dtype=torch.bool)
REWARDS, VALUES = (0.0, 0.0, 1.0), (0.5, 0.6, 0.7)
DELTAS = (0.9 * 0.6 - 0.5, 0.9 * 0.7 - 0.6, 1 - 0.7)  # .04, .03, .3


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize(
    ("gae_lambda", "found"),
    [
        (0.0, DELTAS),
        # .3; .03 + .72 * .3 = .246; .04 + .72 * .246 = .21712
        (0.8, (0.21712, 0.246, 0.3)),
        # returns .81, .9, 1 minus values
        (1.0, (0.31, 0.3, 0.3)),
    ],
)
def test_generalized_advantages(gae_lambda, found):
    advantages = advantages_of(row(*REWARDS), row(*VALUES), ONES, discount=0.9, gae_lambda=gae_lambda)
    torch.testing.assert_close(advantages, row(*found))


@pytest.mark.parametrize(
    "places",
    [(0, 1, 2), (2, 3, 4), (0, 2, 4)],
    ids=["padding after", "padding before", "a response in two parts"],
)
def test_positions_without_loss_are_passed_over(places):
    mask = torch.zeros(1, 5, dtype=torch.bool)
    mask[0, list(places)] = True
    rewards, values = torch.full((1, 5), 99.0).double(), torch.full((1, 5), -99.0).double()
    rewards[mask], values[mask] = row(*REWARDS)[0], row(*VALUES)[0]
    found = advantages_of(rewards, values, mask, discount=0.9, gae_lambda=0.8)
    torch.testing.assert_close(found[mask], row(0.21712, 0.246, 0.3)[0])
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize(("discount", "found"), [(0.0, (1, 2, 4)), (0.5, (1 + 1 + 1, 2 + 2, 4)), (1.0, (7, 6, 4))])
def test_returns(discount, found):
    torch.testing.assert_close(returns(row(1, 2, 4), ONES, discount=discount), row(*found))


def test_a_reward_comes_at_the_last_token():
    mask = torch.tensor([[True, True, False], [False, True, True], [False, False, False], [True, False, True]])
    found = at_the_end(torch.tensor([5.0, 6.0, 7.0, 8.0]), mask)
    assert found.tolist() == [[0, 5, 0], [0, 0, 6], [0, 0, 0], [0, 0, 8]]  # the last was interrupted


@pytest.mark.parametrize(
    ("value", "clip", "found"),
    [
        (1.0, None, 4.0),  # (1 - 3)^2
        (1.0, 0.5, 6.25),  # from 0 it may come to .5: (.5 - 3)^2
        (0.25, 0.5, 7.5625),
        (5.0, 0.5, 6.25),  # beyond the return, and too far
        (9.0, 0.5, 36.0),
    ],
)
def test_value_error(value, clip, found):
    assert value_error(row(value), row(0.0), row(3.0), clip).item() == pytest.approx(found / 2)


def term(**settings) -> PPO:
    made = PPO(**settings)
    made.sized_for(Shape(width=2, layers=1), None)  # without a teacher
    return made.double()


def test_no_teacher_is_needed():
    made = PPO()
    introduce(made, SimpleNamespace(shape=Shape(width=5, layers=1)), None)
    assert made.value.weight.shape == (1, 5)


def given(**changes):
    """One response of two tokens and reward 1; its hidden states are (1, 0) and (0, 1), its ratios 1 and 1.5."""
    old = row(-1.0, -2.0, 0.0)
    signals = {
        "student_logprobs": old + row(1.0, 1.5, 1.0).log(),
        "old_logprobs": old,
        "behaviour_logprobs": old,
        "rewards": torch.tensor([1.0], dtype=torch.float64),
        "student_hidden": (torch.full((1, 3, 2), 9.0).double(), torch.eye(3, 2, dtype=torch.float64)[None]),
        "mask": torch.tensor([[True, True, False]]),
    }
    return {**signals, **changes}


def test_policy_and_head_by_hand():
    loss = term(gae_lambda=1.0, value_weight=0.5)
    with torch.no_grad():
        loss.value.weight.copy_(row(0.2, 0.4))
    # held: V_old = 0, so A = R = 1. Ratio 1.5 is clipped to 1.2. (.2 - 1)^2/2 = .32; from 0, .4 may count as .2: .32
    found = values_of(loss)(**given())[0, :2]
    torch.testing.assert_close(found, row(-1.0 + 0.5 * 0.32, -1.2 + 0.5 * 0.32)[0])


def test_the_held_head_is_the_baseline():
    loss = term(discount=0.9, gae_lambda=1.0, value_weight=0.0)
    with torch.no_grad():
        loss.value.weight.copy_(row(0.2, 0.4))
    loss.after_step(0.0, Progress(1, 10))
    # A = (.9 - .2, 1 - .4)
    torch.testing.assert_close(values_of(loss)(**given())[0, :2], row(-0.7, -1.2 * 0.6)[0])


def test_the_held_head_is_renewed_with_the_window():
    loss, held = term(uses=2), []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            loss.value.bias.fill_(step)
        loss.after_step(0.0, Progress(step, 10))
        held.append(loss.held_bias.item())
    assert held == [0, 2, 2, 4]
    copy = term(uses=2)
    copy.load_state_dict(loss.state_dict())
    assert copy.held_bias.item() == 4


@pytest.mark.parametrize("through_student", [False, True])
def test_the_heads_loss_and_the_students_body(through_student):
    hidden = given()["student_hidden"][1].clone().requires_grad_()
    loss = term(through_student=through_student)
    with torch.no_grad():
        loss.value.weight.copy_(row(0.2, 0.4))
    values_of(loss)(**given(student_hidden=(hidden,)))[given()["mask"]].sum().backward()
    assert loss.value.weight.grad.abs().sum() > 0
    assert (hidden.grad is not None and bool(hidden.grad.abs().sum() > 0)) == through_student


def test_the_head_learns_what_a_response_is_worth():
    loss = term(value_weight=1.0, value_clip=None)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for step in range(200):
        optimizer.zero_grad()
        values_of(loss)(**given())[given()["mask"]].sum().backward()
        optimizer.step()
        loss.after_step(0.0, Progress(step + 1, 200))
    hidden = given()["student_hidden"][1]
    values = loss.value(hidden)[0, :2, 0]
    torch.testing.assert_close(values, torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)
    # a baseline that knows the reward leaves nothing to learn
    policy = values_of(loss)(**given(student_logprobs=given()["old_logprobs"]))[given()["mask"]]
    torch.testing.assert_close(policy, torch.zeros(2, dtype=torch.float64), atol=2e-3, rtol=0)


def test_sampling_elsewhere_is_corrected():
    plain, old = values_of(term(value_weight=0.0))(**given()), given()["old_logprobs"]
    for factor, weight in ((2.0, 2.0), (8.0, 3.0)):
        found = values_of(term(value_weight=0.0))(**given(behaviour_logprobs=old - math.log(factor)))
        torch.testing.assert_close(found[0, :2], weight * plain[0, :2])
