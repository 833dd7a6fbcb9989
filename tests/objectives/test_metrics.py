"""What terms log beside their values, by hand; and what every metric is: detached, and shaped like the values.

Run: python -m pytest tests/objectives/test_metrics.py
"""

from functools import partial
from math import log

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from kd.objectives import policy, preference
from kd.objectives.critic import PPO
from kd.objectives.reward_model import RewardModel
from kd.signals import domain, is_row_wise, requires, separated
from kd.types import Shape
from tests.objectives.terms import TERMS, over, world


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def metrics(result) -> dict[str, list]:
    return {name: metric.tolist() for name, metric in separated(result)[1].items()}


def near(*values):
    return [pytest.approx(value) for value in values] if isinstance(values[0], list) else pytest.approx([*values])


# ---- of every term ---------------------------------------------------------------------------------------------------

WITH_METRICS = [term for term in TERMS if separated(term.loss(**world().signals(term.loss)))[1]]


def test_policies_and_preferences_have_metrics():
    kinds = ("policy", "preference")
    without = {term.name for term in TERMS if term.kind in kinds} - {term.name for term in WITH_METRICS}
    assert not without


@over(WITH_METRICS)
def test_metrics_are_detached_and_run_over_what_the_values_run_over(term):
    given = world()
    given.logits["student"].requires_grad_()
    values, found = separated(term.loss(**given.signals(term.loss)))
    assert values.requires_grad or not term.wants("logits", "logprobs")
    for name, metric in found.items():
        assert not metric.requires_grad, name
        assert (metric.shape, metric.dtype) == (values.shape, values.dtype), name
        assert metric.isfinite().all(), name


@over([term for term in WITH_METRICS if is_row_wise(term.loss)])
def test_metrics_of_split_rows_are_split_metrics(term):
    signals = world().signals(term.loss)
    _, whole = separated(term.loss(**signals))
    halves = [
        separated(term.loss(**{n: x[part] if isinstance(x, Tensor) else x for n, x in signals.items()}))[1]
        for part in (slice(0, 5), slice(5, None))
    ]
    for name, metric in whole.items():
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), metric, rtol=1e-12, atol=1e-12)


def counted(student_logprobs: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]:
    return -student_logprobs, {"sure": student_logprobs > log(0.5)}


def test_a_tuple_declares_the_values_and_bits_are_numbers():
    assert (domain(counted), requires(counted), is_row_wise(counted)) == ("*n", {"student_logprobs"}, True)
    assert metrics(counted(torch.tensor([-0.1, -2.0]))) == {"sure": [1.0, 0.0]}


def test_a_metric_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the metric mean has shape \[\] and the values have \[2\]; return"):
        separated((torch.zeros(2), {"mean": torch.zeros(())}))


# ---- policies --------------------------------------------------------------------------------------------------------

OLD = rows((-1.0, -2.0), (-1.0, -3.0))
RATIO = rows((1.5, 1.0), (0.5, 1.5))
NEW = OLD + RATIO.log()
REWARDS = torch.tensor([1.0, 0.0], dtype=torch.float64)  # so the first response has A > 0, the second A < 0
SQUARES = [[log(1.5) ** 2 / 2, 0], [log(0.5) ** 2 / 2, log(1.5) ** 2 / 2]]


def test_grpo():
    # 1.5 is above 1.28 and good; 0.5 is below 0.8 and bad; 1.5 is above, but bad, and learns on
    found = metrics(policy.grpo(NEW, OLD, OLD - log(2), REWARDS, 2, clip_high=0.28))
    assert found.pop("ratio") == near(*RATIO.tolist())
    assert found.pop("clip_ratio/low_mean") == [[0, 0], [1, 0]]
    assert found.pop("clip_ratio/high_mean") == [[1, 0], [0, 0]]
    assert found.pop("clip_ratio/region_mean") == [[1, 0], [1, 0]]
    assert found.pop("approx_kl") == near(*SQUARES)
    assert found.pop("sampling/importance_sampling_ratio/mean") == near([2, 2], [2, 2])  # q_old/b
    assert not found


def test_a_side_without_a_bound_has_no_clip_ratio():
    one_sided = metrics(policy.grpo(NEW, OLD, OLD, REWARDS, 2, clip_low=None))
    assert [name for name in one_sided if name.startswith("clip")] == ["clip_ratio/high_mean", "clip_ratio/region_mean"]
    assert one_sided["clip_ratio/region_mean"] == [[1, 0], [0, 1 - 1]]
    assert set(metrics(policy.reinforce(NEW, OLD, REWARDS, 2))) == {"ratio"}


def test_opd():
    # p(y) = 2 q_old(y), so A = log 2 everywhere; q/b = 3/2, 1; q/q_old = 3, 2 where b = 2 q_old
    old = rows((-2.0, -3.0))[0]
    q, b = old + rows((3.0, 2.0)).log()[0], old + log(2)
    logits = rows((0.5, 0.25, 0.25), (1.0, 0.0, 0.0)).log()  # entropies 3/2 log 2, and 0
    found = metrics(policy.opd(q, old + log(2), b, old, logits, clip_high=0.2))
    assert found["ratio"] == near(1.5, 1.0)
    assert found["clip_ratio/high_mean"] == [1, 0]
    assert found["approx_kl"] == near(log(3) ** 2 / 2, log(2) ** 2 / 2)
    assert found["entropy"] == near(1.5 * log(2), 0.0)
    plain = metrics(policy.policy_gradient(q, b, torch.ones_like(q), logits))
    assert plain == {name: found[name] for name in ("ratio", "entropy")}


def test_ppo():
    term = PPO(gae_lambda=1.0, value_clip=None)
    term.sized_for(Shape(width=2, layers=1), None)
    term.double()
    mask = torch.ones(2, 2, dtype=torch.bool)
    found = metrics(term(NEW, OLD, OLD, REWARDS, (torch.ones(2, 2, 2, dtype=torch.float64),), mask))
    # V = 0, so the returns are the rewards: A = 1 in the first response and 0 in the second
    assert found["value_loss"] == near([0.5, 0.5], [0, 0])
    assert found["clip_ratio/high_mean"] == [[1, 0], [0, 0]]
    assert found["clip_ratio/low_mean"] == [[0, 0], [0, 0]]  # A = 0
    assert found["approx_kl"] == near(*SQUARES)


# ---- preferences -----------------------------------------------------------------------------------------------------

# w: tokens of probability 1/2, 1/4, 1/2 -> log q(w) = -4 log 2, three tokens; the other model: -3 log 2
# l: tokens of probability 1/4, 1/8      -> log q(l) = -5 log 2, two tokens;   the other model: -3 log 2
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)
STUDENT = -log(2) * rows((0, 0, 1, 2, 1), (0, 0, 2, 3, 0))
OTHER = -log(2) * rows((0, 0, 1, 1, 1), (0, 0, 1, 2, 0))
SUMS, MEANS = (-4, -5), (-4 / 3, -5 / 2)  # in units of log 2
AGAINST = {  # rewards in units of log 2, and log-probabilities
    "dpo": (partial(preference.dpo, beta=0.5), (-0.5, -1.0), SUMS),
    "rso": (partial(preference.rso, gamma=0.5), (-0.5, -1.0), SUMS),
    "dpkd": (partial(preference.dpkd, beta=0.5), (-0.5, -1.0), SUMS),
    "ipo of means": (partial(preference.ipo, tau=0.5), (-1 / 6, -1 / 2), MEANS),
    "ipo of sums": (partial(preference.ipo, tau=0.5, length_normalised=False), (-0.5, -1.0), SUMS),
}
ALONE = {
    "cpo": (partial(preference.cpo, beta=0.5), (-2.0, -2.5), SUMS),
    "slic": (preference.slic, SUMS, SUMS),
    "simpo": (partial(preference.simpo, beta=2.0), (-8 / 3, -5.0), MEANS),
    "orpo": (preference.orpo, MEANS, MEANS),
}


def assert_pair(found: dict[str, list], rewards: tuple[float, float], logps: tuple[float, float]) -> None:
    (chosen, rejected), names = rewards, ("rewards/chosen", "rewards/rejected", "rewards/margins")
    assert {name: found[name][0] / log(2) for name in names} == pytest.approx(
        dict(zip(names, (chosen, rejected, chosen - rejected), strict=True))
    )
    assert found["rewards/accuracies"] == [float(chosen > rejected)]
    assert [found[f"logps/{side}"][0] / log(2) for side in ("chosen", "rejected")] == pytest.approx(logps)
    assert len(found) == 6


@pytest.mark.parametrize(("loss", "rewards", "logps"), AGAINST.values(), ids=AGAINST)
def test_pairs_against_another_model(loss, rewards, logps):
    assert_pair(metrics(loss(STUDENT, OTHER, MASK, 2)), rewards, logps)
    swapped = metrics(loss(STUDENT.flip(0), OTHER.flip(0), MASK.flip(0), 2))
    assert_pair(swapped, rewards[::-1], logps[::-1])


@pytest.mark.parametrize(("loss", "rewards", "logps"), ALONE.values(), ids=ALONE)
def test_pairs_without_another_model(loss, rewards, logps):
    assert_pair(metrics(loss(STUDENT, MASK, 2)), rewards, logps)


def test_single_responses():
    # z = -log 2 and -2 log 2, both negative: right for the second alone, whose reward is below 1/2
    found = metrics(preference.apo_zero(STUDENT, OTHER, MASK, REWARDS, beta=0.5))
    assert found["rewards"] == near(-0.5 * log(2), -log(2))
    assert found["accuracies"] == [0, 1]
    assert found["logps"] == near(-4 * log(2), -5 * log(2))


def test_the_token_form():
    # p: the first id by log 2; q: the second by log 4, so h = -log 4 - log 2. Then both prefer the first: h = 0
    teacher = rows((2, 1, 1), (4, 1, 1)).log()
    student = rows((1, 4, 1), (2, 1, 1)).log()
    found = metrics(preference.dpkd_token(student, teacher, beta=2.0))
    assert found == {"rewards/margins": near(-6 * log(2), 0.0), "rewards/accuracies": [0, 0]}


def test_a_reward_model():
    term = RewardModel()
    term.sized_for(Shape(width=1, layers=1), None)
    with torch.no_grad():
        term.head.weight.fill_(1.0)
    # scores 3, 2, 0 and 1, 1, 5: pairs differ by 1, 3, 2 and by 0, -4, -4
    hidden = torch.tensor([3.0, 2.0, 0.0, 1.0, 1.0, 5.0])[:, None, None]
    found = metrics(term((hidden,), torch.ones(6, 1, dtype=torch.bool), 3))
    assert found == {"accuracy": [1, 0], "margin": near(2.0, -8 / 3)}
