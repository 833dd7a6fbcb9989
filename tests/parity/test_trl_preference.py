"""Ours against TRL's preference trainers as installed: their own loss methods on given log-probabilities.

TRL has all preferred responses first and then all others; we have pairs side by side.

Run: make parity ARGS=tests/parity/test_trl_preference.py
"""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kd.kernels.logits import label_logprobs
from kd.objectives import preference
from kd.objectives.preference import response_logprobs
from tests.objectives.alone import values_of
from tests.parity.pair import IGNORED, assert_equal, assert_same

apo_zero, chosen_likelihood = map(values_of, (preference.apo_zero, preference.chosen_likelihood))
dpo, ipo, rso = map(values_of, (preference.dpo, preference.ipo, preference.rso))
cpo, simpo, orpo = map(values_of, (preference.cpo, preference.simpo, preference.orpo))

T, V = 7, 23
LENGTHS = torch.tensor([7, 4, 1, 6, 3, 3])  # response tokens; pairs side by side
APART = torch.tensor([0, 2, 4, 1, 3, 5])  # TRL's order
MASK = torch.arange(T) >= T - LENGTHS[:, None]


def drawn(seed: int) -> Tensor:
    return torch.randn(len(LENGTHS), T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.randint(0, V, MASK.shape, generator=torch.Generator().manual_seed(3))


def logprobs(logits: Tensor) -> Tensor:
    """[B T], 0 where no label counts."""
    values = label_logprobs(logits[MASK], LABELS[MASK])
    return torch.zeros(MASK.shape, dtype=values.dtype).masked_scatter(MASK, values)


def given() -> SimpleNamespace:
    return SimpleNamespace(student=drawn(1).requires_grad_(), reference=logprobs(drawn(2)))


def with_prompt(values: Tensor, prompt: int) -> Tensor:
    """[B T+1]: TRL shifts by itself."""
    return torch.cat([torch.full_like(values[:, :1], prompt), values], 1)


def trainer(**settings) -> SimpleNamespace:
    """What a loss method reads of its trainer, on one device and without models."""

    def same(x):
        return x

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    shared = {"aux_loss_enabled": False, "precompute_ref_logps": True, "_total_train_tokens": 0, "_tp_size": 1}
    metrics = defaultdict(lambda: defaultdict(list))
    return SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(training=True), _metrics=metrics, **shared, **settings
    )


def model(values: Tensor):
    """A model that says `values` of the labels."""
    zeros = torch.zeros(values.shape)
    told = SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: told


def inputs(order: Tensor) -> dict[str, Tensor]:
    mask = with_prompt(MASK[order].long(), 0)
    return {"input_ids": with_prompt(LABELS[order], 0), "completion_mask": mask, "attention_mask": mask}


# ---- DPO -------------------------------------------------------------------------------------------------------------


def dpo_trainer(world: SimpleNamespace, loss_type: str, beta: float, label_smoothing: float = 0.0) -> Tensor:
    from trl import DPOTrainer

    settings = {"loss_types": [loss_type], "loss_weights": [1.0], "beta": beta, "label_smoothing": label_smoothing}
    own = trainer(ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False, **settings)
    better, worse = response_logprobs(world.reference, MASK)[APART].chunk(2)
    told = inputs(APART) | {"ref_chosen_logps": better, "ref_rejected_logps": worse}
    return DPOTrainer._compute_loss(own, model(logprobs(world.student)[APART]), told, False)


@pytest.mark.parametrize(
    ("loss_type", "objective"),
    [
        ("sigmoid", partial(dpo, beta=0.3)),
        ("ipo", partial(ipo, tau=0.3)),
        ("hinge", partial(rso, gamma=0.3)),
    ],
)
def test_dpo(loss_type, objective):
    world = given()
    value = objective(logprobs(world.student), world.reference, MASK, 2).mean()
    assert_same(world, value, dpo_trainer(world, loss_type, 0.3))


def test_label_smoothing_is_their_robust_loss_before_it_is_made_unbiased():
    # robust: [(1 - e) l(h) - e l(-h)] / (1 - 2 e); ours has + e l(-h)
    world, e = given(), 0.2
    plain = partial(dpo, beta=0.3)(logprobs(world.student), world.reference, MASK, 2).mean()
    smoothed = partial(dpo, beta=0.3, label_smoothing=e)(logprobs(world.student), world.reference, MASK, 2).mean()
    expected = (2 * (1 - e) * plain - smoothed) / (1 - 2 * e)
    assert_same(world, expected, dpo_trainer(world, "robust", 0.3, e))


# ---- ORPO, CPO and SimPO ---------------------------------------------------------------------------------------------


def their_logprobs(trainer_class, logits: Tensor, *, average: bool) -> tuple[Tensor, Tensor]:
    """Of the preferred and of the other responses, from whole logits and labels, shifted by TRL."""
    whole = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)[APART]
    labels = with_prompt(LABELS.masked_fill(~MASK, IGNORED), IGNORED)[APART]
    better, worse = trainer_class.get_batch_logps(whole, labels, average_log_prob=average).chunk(2)
    return better, worse


def test_orpo():
    from trl.experimental.orpo import ORPOTrainer

    world = given()
    better, worse = their_logprobs(ORPOTrainer, world.student, average=True)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.1), better, worse)
    # theirs is lambda log sigma, subtracted from the likelihood, in float32
    assert_same(world, 0.1 * orpo(logprobs(world.student), MASK, 2).mean(), -losses.mean(), 1e-6)


@pytest.mark.parametrize(
    ("loss_type", "objective", "average"),
    [("sigmoid", partial(cpo, beta=0.3), False), ("simpo", partial(simpo, beta=0.3, gamma=0.2), True)],
)
def test_cpo(loss_type, objective, average):
    from trl.experimental.cpo import CPOTrainer

    world = given()
    own = trainer(alpha=0.0, loss_type=loss_type, beta=0.3, simpo_gamma=0.2, label_smoothing=0.0)
    losses, *_ = CPOTrainer.cpo_loss(own, *their_logprobs(CPOTrainer, world.student, average=average))
    assert_same(world, objective(logprobs(world.student), MASK, 2).mean(), losses.mean())


def test_their_likelihood_is_a_mean_over_tokens_ours_over_responses():
    # CPO's and ORPO's NLL: cross-entropy over all tokens of the preferred responses together.
    world = given()
    rows = MASK & (torch.arange(len(LENGTHS)) % 2 == 0)[:, None]
    theirs = torch.nn.functional.cross_entropy(world.student[rows], LABELS[rows])
    sums = chosen_likelihood(logprobs(world.student), MASK, 2)
    assert_same(world, sums.sum() / LENGTHS[::2].sum(), theirs)
    means = chosen_likelihood(logprobs(world.student), MASK, 2, length_normalised=True)
    assert_equal(means.detach(), (sums / LENGTHS[::2]).detach(), 1e-12)


# ---- KTO's trainer ---------------------------------------------------------------------------------------------------


def test_apo_zero_on_single_responses():
    from trl import KTOTrainer

    world, good = given(), torch.tensor([True, False, False, True, True, False])
    own = trainer(
        loss_type="apo_zero_unpaired", calculate_KL=False, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5
    )
    own._compute_kl_logps = lambda *_: None
    told = inputs(torch.arange(len(LENGTHS))) | {"label": good, "ref_logps": response_logprobs(world.reference, MASK)}
    theirs = KTOTrainer._compute_loss(own, model(logprobs(world.student)), told, False)
    loss = partial(apo_zero, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    assert_same(world, loss(logprobs(world.student), world.reference, MASK, good.double()).mean(), theirs)
