"""What policy gradients learn, by summing over every response there is; clips and groups by hand.

Run: python -m pytest tests/objectives/test_policy.py
"""

import math

import pytest
import torch
from torch import Tensor

from kd.objectives import policy
from kd.objectives.divergence import reverse_kl
from kd.objectives.policy import surrogate
from kd.objectives.returns import group_advantages
from kd.training.terms import Term
from kd.types import Batch, Sequences
from tests.objectives import terms, trees
from tests.objectives.alone import values_of
from tests.objectives.trees import MASK, STUDENT, TEACHER, expected, gradient, logprobs

grpo, grpo_among_own, reinforce = map(values_of, (policy.grpo, policy.grpo_among_own, policy.reinforce))
opd, opd_discounted, policy_gradient = map(values_of, (policy.opd, policy.opd_discounted, policy.policy_gradient))

EXACT = {"rtol": 1e-10, "atol": 1e-12}
REWARDS = torch.randn(len(MASK), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LOW, HIGH = 0.2, 0.3
TERMS = {term.name: term for term in terms.TERMS}


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def on_policy(term, **settings):
    """An objective of the student's table, which writes and learns at once."""

    def loss(student: Tensor) -> Tensor:
        old = logprobs(student).detach()
        return expected(term(logprobs(student), logprobs(TEACHER), old, old, **settings), student)

    return loss


def single_steps(student: Tensor) -> Tensor:
    """sum_y q(y) sum_t KL(q || p) after y_<t, prefixes held constant."""
    return expected(reverse_kl(trees.logits(student), trees.logits(TEACHER)), student)


def expected_reward(student: Tensor) -> Tensor:
    return (logprobs(student).sum(-1).exp() * REWARDS).sum()


# ---- against enumeration ---------------------------------------------------------------------------------------------


def test_responses_are_all_there():
    assert len(MASK) == 15
    assert trees.probabilities(STUDENT).sum() == pytest.approx(1.0, abs=1e-12)


def test_discount_one_is_the_gradient_of_the_responses_reverse_kl():
    found = gradient(on_policy(opd_discounted, mask=MASK, discount=1.0), STUDENT)
    target = gradient(lambda student: trees.sequence_reverse_kl(student, TEACHER), STUDENT)
    torch.testing.assert_close(found, target, **EXACT)


@pytest.mark.parametrize(
    "term",
    [
        lambda *signals: opd(*signals, trees.logits(STUDENT)),
        lambda *signals: opd_discounted(*signals, mask=MASK, discount=0.0),
    ],
)
def test_discount_zero_is_the_gradient_of_the_single_steps(term):
    torch.testing.assert_close(gradient(on_policy(term), STUDENT), gradient(single_steps, STUDENT), **EXACT)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_the_ratio_to_the_behaviour_makes_a_single_step_unbiased(alpha):
    """Tokens drawn from alpha p + (1 - alpha) q, after prefixes that are drawn from it, too."""
    q, p = STUDENT.softmax(-1), TEACHER.softmax(-1)
    mixed = (alpha * p + (1 - alpha) * q).log()
    drawn, old = logprobs(mixed), logprobs(STUDENT)

    def sampled(student: Tensor) -> Tensor:
        return expected(opd(logprobs(student), logprobs(TEACHER), drawn, old, trees.logits(student)), mixed)

    def whole(student: Tensor) -> Tensor:
        return expected(reverse_kl(trees.logits(student), trees.logits(TEACHER)), mixed)

    torch.testing.assert_close(gradient(sampled, STUDENT), gradient(whole, STUDENT), **EXACT)


def test_minillms_weights_make_its_single_step_unbiased():
    """w_t sum_v q log(q/p) at tokens of p~, summed over what each of them could have been: 1 on average."""
    mixed = (0.2 * TEACHER.softmax(-1) + 0.8 * STUDENT.softmax(-1)).log()
    weights = (logprobs(STUDENT) - logprobs(mixed)).exp()
    sequences = Sequences(trees.LABELS, trees.LABELS, MASK, MASK.sum(-1))
    batch = Batch(sequences, sequences, importance_weights=weights)
    single = TERMS["minillm-minillm_single"]
    chances = trees.probabilities(mixed)[:, None].expand_as(MASK)[MASK]
    found = Term(single.loss, kind=single.kind).row_weights(chances, None, batch)
    assert not torch.allclose(found, chances)
    values = reverse_kl(trees.logits(STUDENT), trees.logits(TEACHER))[MASK]
    torch.testing.assert_close((found * values).sum(), (chances * values).sum(), **EXACT)
    long = TERMS["minillm-minillm_long"]  # whose ratio is in its loss already
    assert torch.equal(Term(long.loss, kind=long.kind).row_weights(chances, None, batch), chances)


def test_reinforce_without_a_baseline_is_the_gradient_of_the_expected_reward():
    def loss(student: Tensor) -> Tensor:
        return expected(reinforce(logprobs(student), logprobs(STUDENT), REWARDS, 1, baseline="none"), STUDENT)

    torch.testing.assert_close(gradient(loss, STUDENT), -gradient(expected_reward, STUDENT), **EXACT)


@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("leave_one_out", 1.0), ("group", 0.5)])
def test_baselines_over_all_pairs_of_responses(baseline, share):
    """Groups of two, each with its probability; the group's own mean takes 1/2 of the gradient away."""
    n = len(MASK)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    flat = pairs.flatten()
    chance = trees.probabilities(STUDENT)[pairs].prod(-1)

    def loss(student: Tensor) -> Tensor:
        signals = logprobs(student)[flat], logprobs(STUDENT)[flat], REWARDS[flat], 2
        values = reinforce(*signals, baseline=baseline).where(MASK[flat], 0.0).sum(-1)
        return (values.view(-1, 2).mean(-1) * chance).sum()

    torch.testing.assert_close(gradient(loss, STUDENT), -share * gradient(expected_reward, STUDENT), **EXACT)


# ---- clips by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.25, 1.0, -1.25, True),  # below 1.3
        (1.5, 1.0, -1.3, False),  # has gone far enough up
        (1.5, -1.0, 1.5, True),  # went up although it is bad
        (0.5, 1.0, -0.5, True),  # went down although it is good
        (0.5, -1.0, 0.8, False),  # has gone far enough down
    ],
)
def test_clip_cases(ratio, advantage, value, learns):
    log_ratio = vector(math.log(ratio)).requires_grad_()
    found = surrogate(log_ratio, vector(advantage), clip_low=LOW, clip_high=HIGH)
    found.sum().backward()
    assert found.item() == pytest.approx(value, rel=1e-12)
    assert log_ratio.grad.item() == pytest.approx(-ratio * advantage if learns else 0.0, rel=1e-12)


@pytest.mark.parametrize(
    ("bounds", "value"),
    [({}, -1.5), ({"clip_low": LOW}, -1.5), ({"clip_high": HIGH}, -1.3), ({"clip_high": 0.0}, -1.0)],
)
def test_a_side_without_a_bound(bounds, value):
    assert surrogate(vector(math.log(1.5)), vector(1.0), **bounds).item() == pytest.approx(value, rel=1e-12)


def test_every_clip_is_passed_on():
    far = vector(math.log(2.0)), vector(0.0), vector(1.0)  # q, b, A = 1
    assert policy_gradient(*far, torch.zeros(1, 2), clip_high=HIGH).item() == pytest.approx(-1.3)
    q, p, b, old = far[0], vector(1.0), vector(0.0), vector(0.0)
    assert opd(q, p, b, old, torch.zeros(1, 2), clip_high=HIGH).item() == pytest.approx(-1.3)
    grid = (x[None] for x in (q, p, b, old))
    one = torch.ones(1, 1, dtype=torch.bool)
    assert opd_discounted(*grid, one, clip_high=HIGH).item() == pytest.approx(-1.3)


def test_advantages_are_constants():
    advantages = vector(1.0).requires_grad_()
    surrogate(vector(0.0).requires_grad_(), advantages).sum().backward()
    assert advantages.grad is None


def test_a_ratio_out_of_reach_is_finite():
    log_ratio = torch.tensor([200.0, -200.0], requires_grad=True)
    values = surrogate(log_ratio, torch.tensor([-1.0, 1.0]))
    values.sum().backward()
    assert values.isfinite().all()
    assert log_ratio.grad.isfinite().all()


# ---- groups by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        # groups (1, 0, 0, 3) and (2, 2, 2, 2): means 1 and 2
        ({}, (0, -1, -1, 2, 0, 0, 0, 0)),
        ({"baseline": "none"}, (1, 0, 0, 3, 2, 2, 2, 2)),
        # 1 - (0+0+3)/3, 0 - 4/3, 0 - 4/3, 3 - 1/3
        ({"baseline": "leave_one_out"}, (0, -4 / 3, -4 / 3, 8 / 3, 0, 0, 0, 0)),
        # deviation sqrt((0 + 1 + 1 + 4)/3) = sqrt(2), and 0
        ({"by_deviation": True}, (0, -1 / 1.4143136, -1 / 1.4143136, 2 / 1.4143136, 0, 0, 0, 0)),
    ],
)
def test_group_advantages(settings, found):
    rewards = vector(1, 0, 0, 3, 2, 2, 2, 2)
    torch.testing.assert_close(group_advantages(rewards, 4, **settings), vector(*found), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"baseline": "leave_one_out"}, {"baseline": "none", "by_deviation": True}])
def test_one_response_has_no_group(settings):
    with pytest.raises(ValueError, match=r"group_size=1.*rollout\.samples"):
        group_advantages(vector(1.0, 2.0), 1, **settings)


def grpo_signals(**changes):
    """Two responses, of two tokens and of one; ratios 1.5 and 1, and 0.5; both were drawn from the student itself."""
    old = vector(-1.0, -2.0, -1.0, 0.0).view(2, 2)
    new = old + vector(1.5, 1.0, 0.5, 1.0).log().view(2, 2)
    given = {"student_logprobs": new, "old_logprobs": old, "behaviour_logprobs": old, "rewards": vector(1, 0)}
    return {**given, "group_size": 2, **changes}


def test_only_members_of_a_group_are_compared():
    # rewards 1..4: mean 2.5, deviation of a sample sqrt(5/3) = 1.291, so +-1.162 and +-.387; who is no member has 0
    rewards, members = vector(9, 1, 2, 3, 4), torch.tensor([False, True, True, True, True])
    found = group_advantages(rewards, 5, by_deviation=True, members=members)
    torch.testing.assert_close(found, vector(0, -1.1619, -0.3873, 0.3873, 1.1619), rtol=1e-3, atol=0)
    # of the others' mean: 1 - (2 + 3 + 4)/3, 2 - (1 + 3 + 4)/3, ...
    others = group_advantages(rewards, 5, baseline="leave_one_out", members=members)
    torch.testing.assert_close(others, vector(0, -2, -2 / 3, 2 / 3, 2), **EXACT)
    assert group_advantages(rewards, 5, baseline="none", members=members).tolist() == [0, 1, 2, 3, 4]


def test_grpo_among_the_students_own_is_grpo_without_the_others():
    generator = torch.Generator().manual_seed(5)
    student, old, behaviour = (torch.randn(10, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    rewards, wrote = torch.randn(10, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 2, 2, 2] * 2)
    own = wrote == 2
    found = grpo_among_own(student, old, behaviour, rewards, wrote, 5)
    alone = grpo(student[own], old[own], behaviour[own], rewards[own], 4)
    torch.testing.assert_close(found[own], alone, **EXACT)
    assert (found[~own] == 0).all()


def test_grpo_by_hand():
    # advantages +-1/2; 1.5 is clipped to 1.2 where it is good, 0.5 to 0.8 where it is bad
    found = grpo(**grpo_signals(), by_deviation=False)
    torch.testing.assert_close(found, vector(-0.6, -0.5, 0.4, 0.5).view(2, 2))
    scaled = grpo(**grpo_signals())  # deviation of (1, 0): sqrt(1/2)
    torch.testing.assert_close(scaled, found / (math.sqrt(0.5) + 1e-4))


def test_grpo_weighs_what_was_drawn_from_another_distribution():
    # b = q_old / 2, then q_old / 8, which is bounded by 3
    old = grpo_signals()["old_logprobs"]
    plain = grpo(**grpo_signals())
    for factor, weight in ((2.0, 2.0), (0.25, 0.25), (8.0, 3.0)):
        found = grpo(**grpo_signals(behaviour_logprobs=old - math.log(factor)))
        torch.testing.assert_close(found, weight * plain)


# ---- what a grid has beside responses --------------------------------------------------------------------------------


def padded(signal: Tensor, left: int, right: int) -> Tensor:
    """With columns that hold nonsense, or False."""
    fill = False if signal.dtype == torch.bool else -7.0
    return torch.nn.functional.pad(signal, (left, right), value=fill)


@pytest.mark.parametrize(("left", "right"), [(0, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize(
    "term",
    [
        lambda q, p, b, m, g: opd_discounted(q, p, b, b, m, discount=0.7),
        lambda q, p, b, m, g: reinforce(q, b, REWARDS[:14], g),
        lambda q, p, b, m, g: grpo(q, b, b, REWARDS[:14], g),
    ],
    ids=["opd_discounted", "reinforce", "grpo"],
)
def test_padding_changes_nothing(term, left, right):
    signals = [signal[:14] for signal in (logprobs(STUDENT), logprobs(TEACHER), logprobs(trees.table(2)), MASK)]
    wider = [padded(signal, left, right) for signal in signals]
    plain = term(*signals, 2)[MASK[:14]]
    torch.testing.assert_close(term(*wider, 2)[wider[-1]], plain, rtol=0, atol=0)
