"""Our GRPO against TRL's trainer as installed, clip and KL term included, in value and gradient.

Run: make parity ARGS=tests/parity/test_trl_policy.py
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kd.kernels.logits import label_logprobs
from kd.objectives.estimators import kl_to_reference
from kd.objectives.policy import grpo
from kd.objectives.reduction import Reduction, reduce
from tests.objectives.alone import values_of
from tests.parity.pair import B, Pair, T, V, assert_same, pair

REWARDS = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)  # a group of three
REDUCTIONS: dict[str, Reduction] = {"grpo": "sequence", "bnpo": "token", "dapo": "token"}


def logprobs(given: Pair, logits: Tensor) -> Tensor:
    """Of the labels, [B T]; nonsense where there are none."""
    ids = given.labels.clamp(min=0).flatten()
    return label_logprobs(logits.view(-1, V), ids).view(B, T)


def old_logprobs(given: Pair) -> Tensor:
    """Of a student that has moved since: a third of its ratios are outside of either bound."""
    noise = 0.3 * torch.randn(B, T, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return logprobs(given, given.student).detach() + noise


def behaviour_logprobs(given: Pair) -> Tensor:
    """Of who drew the tokens: not quite the student, and far from it at some of them."""
    noise = torch.randn(B, T, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return old_logprobs(given) + noise


def theirs(
    given: Pair, loss_type: str, *, beta: float = 0.0, scaled: bool = True, elsewhere: bool = False, **epsilons: float
) -> Tensor:
    from trl import GRPOTrainer
    from trl.trainer.utils import nanstd

    own = logprobs(given, given.student)
    trainer = SimpleNamespace(
        **{"aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None},
        **{"importance_sampling_level": "token", "use_vllm": elsewhere, "_entropy_bonus_enabled": False},
        **{"vllm_importance_sampling_correction": True},
        **{"beta": beta, "loss_type": loss_type, "current_gradient_accumulation_steps": 1},
        **{"epsilon_low": 0.2, "epsilon_high": 0.2, **epsilons},
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *args, **settings: (own, torch.zeros_like(own), None),
    )
    deviation = nanstd(REWARDS) + 1e-4 if scaled else 1.0  # as the trainer makes advantages, scale_rewards="group"
    inputs = {
        **{name: torch.zeros(B, 1, dtype=torch.int64) for name in ("prompt_ids", "prompt_mask")},
        **{"completion_ids": given.labels, "completion_mask": given.mask.double()},
        **{"advantages": (REWARDS - REWARDS.mean()) / deviation, "old_per_token_logps": old_logprobs(given)},
        **{"importance_sampling_ratio": (old_logprobs(given) - behaviour_logprobs(given)).exp().clamp(max=3.0)},
        **{"ref_per_token_logps": logprobs(given, given.teacher), "num_items_in_batch": given.mask.sum()},
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def ours(
    given: Pair, reduction: Reduction, *, beta: float = 0.0, elsewhere: bool = False, **settings: float | None
) -> Tensor:
    own, old = logprobs(given, given.student), old_logprobs(given)
    values = values_of(grpo)(own, old, behaviour_logprobs(given) if elsewhere else old, REWARDS, B, **settings)
    if beta:
        values = values + beta * kl_to_reference(own, logprobs(given, given.teacher))
    return reduce(values, given.mask, given.counts, domain="B T", reduction=reduction)


@pytest.mark.parametrize("loss_type", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(loss_type, beta):
    given = pair(scale=0.3)
    assert_same(given, ours(given, REDUCTIONS[loss_type], beta=beta), theirs(given, loss_type, beta=beta))


def test_other_bounds():
    given = pair(scale=0.3)
    found = ours(given, "token", clip_low=0.1, clip_high=0.28)
    assert_same(given, found, theirs(given, "dapo", epsilon_low=0.1, epsilon_high=0.28))


def test_without_the_deviation():
    given = pair(scale=0.3)
    assert_same(given, ours(given, "token", by_deviation=False), theirs(given, "dapo", scaled=False))


def test_tokens_that_were_drawn_elsewhere():
    given = pair(scale=0.3)
    found = ours(given, "token", beta=0.04, elsewhere=True)
    assert_same(given, found, theirs(given, "dapo", beta=0.04, elsewhere=True))


def test_the_clip_is_at_work():
    given = pair(scale=0.3)
    bounded = ours(given, "token").item()
    assert ours(given, "token", clip_low=None, clip_high=None).item() != pytest.approx(bounded, rel=1e-3)
