"""Our GRPO against Liger's as installed, in value and gradient.

Run: make parity ARGS=tests/parity/test_liger_policy.py
"""

import pytest
from torch import Tensor

from tests.parity.pair import B, Pair, assert_same, pair
from tests.parity.test_trl_policy import (
    REDUCTIONS,
    REWARDS,
    behaviour_logprobs,
    logprobs,
    old_logprobs,
    ours,
)


def theirs(given: Pair, loss_type: str, beta: float) -> Tensor:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    mask, old = given.mask.double(), old_logprobs(given)
    loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
        logprobs(given, given.student),
        mask,
        (REWARDS - REWARDS.mean()) / (REWARDS.std() + 1e-4),
        mask,
        ref_per_token_logps=logprobs(given, given.teacher),
        old_per_token_logps=old,
        beta=beta,
        loss_type=loss_type,
        vllm_is_ratio=(old - behaviour_logprobs(given)).exp().clamp(max=3.0),
    )
    return loss


@pytest.mark.parametrize("loss_type", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(loss_type, beta):
    given = pair(scale=0.3)
    assert len(REWARDS) == B
    found = ours(given, REDUCTIONS[loss_type], beta=beta, elsewhere=True)
    assert_same(given, found, theirs(given, loss_type, beta))
