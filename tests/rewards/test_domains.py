"""Advantages of several teachers on one scale: by hand, over the whole step, and as `opd` where nothing is scaled.

Run: python -m pytest tests/rewards/test_domains.py
"""

from math import sqrt

import pytest
import torch

from kd.composition.check import check
from kd.objectives.policy import opd, policy_gradient
from kd.rewards.domains import DomainNormalised
from kd.types import Batch, Models
from tests.objectives.cases import draw
from tests.rewards.test_log_ratio import HERE, Told, batch
from tests.runs import config

RATIOS = torch.tensor([[1.0, 3.0], [0.0, 8.0]], dtype=torch.float64)  # log p - log q_old of two responses
MASK = torch.ones(2, 2, dtype=torch.bool)


class OfDomains(Told):
    """Response i is of domain i."""

    domains = ("sums", "words")

    def owners(self, batch: Batch) -> torch.Tensor:
        return batch.student.tokens[:, 0]


def scaled(ratios=RATIOS, mask=MASK, cuts=(slice(None),), **settings) -> tuple[torch.Tensor, DomainNormalised]:
    reward = DomainNormalised(**settings)
    old = torch.zeros_like(ratios)
    found = reward([batch(mask, old, rows=rows) for rows in cuts], Models(HERE, OfDomains(ratios)))
    return torch.cat([each.advantages for each in found]), reward


def test_each_domain_has_the_spread_of_all():
    # sigma: (1, 3) has 1, (0, 8) has 4, and (1, 3, 0, 8) has sqrt(74/4 - 9) = sqrt(9.5) = 3.0822.
    found, reward = scaled()
    of_all = sqrt(9.5)
    assert found.flatten().tolist() == pytest.approx([of_all, 3 * of_all, 0.0, 8 * of_all / 4])
    report = reward.take_report()
    assert report["domain_weight/sums"] == pytest.approx((of_all, 1.0))
    assert report["domain_weight/words"] == pytest.approx((of_all / 4, 1.0))
    assert report["sampled_reverse_kl/sums"] == pytest.approx((-4.0, 2.0))
    assert report["sampled_reverse_kl/words"] == pytest.approx((-8.0, 2.0))
    assert reward.take_report()["domain_weight/sums"] == (0.0, 0.0)


def test_a_factor_has_bounds():
    found, _ = scaled(low=0.9, high=2.0)
    assert found.flatten().tolist() == pytest.approx([2.0, 6.0, 0.0, 8 * 0.9])


def test_the_cut_of_a_step_changes_nothing():
    whole, _ = scaled()
    parts, _ = scaled(cuts=(slice(0, 1), slice(1, 2)))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("ratios", [[[2.0, 2.0], [0.0, 8.0]], [[2.0, 5.0], [0.0, 8.0]]])
def test_a_domain_without_spread_or_with_one_token_is_left_as_it_is(ratios):
    mask = MASK.clone()
    mask[0, 1] = ratios[0][1] == 2.0
    found, _ = scaled(torch.tensor(ratios, dtype=torch.float64), mask)
    assert found[0][mask[0]].tolist() == [2.0] * int(mask[0].sum())


def test_unscaled_it_is_opd():
    """Bounds of 1, and the policy gradient of the advantages."""
    q, b = draw(2, 2).requires_grad_(), draw(2, 2, seed=1)
    advantages, _ = scaled(low=1.0, high=1.0)
    rows = [x.flatten() for x in (q, b, advantages)]
    found, _ = policy_gradient(*rows, draw(4, 3), clip_low=0.2, clip_high=0.2)
    old = torch.zeros(4, dtype=torch.float64)
    expected, _ = opd(rows[0], RATIOS.flatten(), rows[1], old, draw(4, 3), clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close(found, expected)
    for left, right in zip(torch.autograd.grad(found.sum(), q), torch.autograd.grad(expected.sum(), q), strict=True):
        torch.testing.assert_close(left, right)


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"reward.low=2.0 is above reward.high=1.0"):
        DomainNormalised(low=2.0, high=1.0)


def test_one_teacher_has_no_domains():
    """Refused before any weight is loaded."""
    with pytest.raises(ValueError, match="DomainNormalised compares the domains of several teachers"):
        check(config("reward=domain_normalised", "objective=policy_gradient", "rollout=on_policy"))
