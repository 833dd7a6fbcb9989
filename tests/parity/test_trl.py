"""Ours against TRL as installed: the settings under which the two are one loss, in value and gradient.

Run: make parity ARGS=tests/parity/test_trl.py
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from kd.kernels import over_chunks
from kd.kernels.logits import HeadLogits
from kd.kernels.sparse import SparseLogits, evaluated
from kd.objectives.divergence import forward_kl, generalized_jsd, reverse_kl
from kd.objectives.transport import universal_logit
from kd.signals import requires
from kd.types import Head, Pairs
from tests.parity.pair import IGNORED, B, T, V, assert_equal, assert_same, ours, pair

betas = pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
temperatures = pytest.mark.parametrize("temperature", [1.0, 0.9, 2.0])


def theirs(given, **settings):
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(given.student, given.teacher, given.labels, **settings)


@betas
@temperatures
def test_gkd_is_jsd_with_the_same_beta_and_no_square_of_the_temperature(beta, temperature):
    given = pair()
    found = ours(given, partial(generalized_jsd, beta=beta, temperature=temperature))
    # beta is a float32 number inside TRL's interior formula when it is made: 1e-7 of it is theirs
    assert_same(given, found, theirs(given, beta=beta, temperature=temperature), 1e-7)


@betas
def test_gkd_in_float32(beta):
    given = pair(torch.float32)
    assert_same(given, ours(given, partial(generalized_jsd, beta=beta)), theirs(given, beta=beta), 1e-5)


@betas
def test_gold_has_the_same_function(beta):
    from trl.experimental.gold import GOLDTrainer

    given = pair()
    loss = GOLDTrainer.generalized_jsd_loss(given.student, given.teacher, given.labels, beta=beta, temperature=2.0)
    assert_same(given, ours(given, partial(generalized_jsd, beta=beta, temperature=2.0)), loss, 1e-7)


def test_gkds_reductions():
    given = pair()
    n = int(given.mask.sum())
    token, total = ours(given, forward_kl, "token"), ours(given, forward_kl, "sum")
    assert_same(given, token, theirs(given, beta=0.0, reduction="batchmean"))
    assert_same(given, token, theirs(given, beta=0.0, num_items_in_batch=n))
    assert_same(given, total, theirs(given, beta=0.0, reduction="sum"))
    assert_same(given, token / V, theirs(given, beta=0.0, reduction="mean"))  # over ids, too: 1 / V of it


def test_gkd_without_labels_divides_by_sequences():
    from trl.experimental.gkd import GKDTrainer

    given = pair()
    loss = GKDTrainer.generalized_jsd_loss(given.student, given.teacher, None, beta=0.0)
    rows = forward_kl(given.student.flatten(0, 1), given.teacher.flatten(0, 1))
    assert_same(given, rows.sum() / B, loss)


@betas
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.5, 4.0)])
def test_the_chunked_divergence_is_over_chunks(beta, temperature, scale, soft_cap):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    draw = torch.Generator().manual_seed(7)
    hidden, taught = (torch.randn(20, 6, generator=draw) for _ in range(2))
    weight, teaching = (torch.randn(V, 6, generator=draw) for _ in range(2))
    bias = torch.randn(V, generator=draw)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    their_rows, _ = ChunkedDivergenceFunction.apply(
        hidden, weight, bias, taught, teaching, None, beta, temperature, scale, soft_cap, scale, soft_cap
    )
    term = partial(generalized_jsd, beta=beta, temperature=temperature)
    own, _ = over_chunks(
        {"jsd": term},
        HeadLogits(hidden, Head(weight, bias, scale, soft_cap)),
        {"teacher_logits": HeadLogits(taught, Head(teaching, None, scale, soft_cap))},
        {"jsd": torch.full((20,), 1 / 20)},
        {"jsd": requires(term)},
        chunk=8,
    )
    assert_equal(own.detach(), their_rows.mean().detach(), 1e-5)
    for a, b in zip(*(torch.autograd.grad(x, leaves) for x in (own, their_rows.mean())), strict=True):
        assert_equal(a, b, 1e-5)


def test_the_stable_trainers_loss_is_the_token_mean():
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    given, eye = pair(torch.float32), torch.eye(V)
    loss, _, valid = _chunked_divergence_loss(given.student, given.teacher, eye, eye, given.mask.int(), 1.0)
    assert int(valid) == int(given.mask.sum())
    assert_same(given, ours(given, reverse_kl), loss, 1e-5)


@pytest.mark.parametrize(("alpha", "objective"), [(0.0, forward_kl), (1.0, reverse_kl), (0.5, generalized_jsd)])
def test_the_tail_bucket(alpha, objective):
    from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss

    given = pair()
    student, teacher = given.student[given.mask], given.teacher[given.mask]
    settings = {"distillation_topk": 5, "distillation_alpha": alpha, "distillation_add_tail": True}
    loss = compute_topk_self_distillation_loss(student, teacher, **settings)
    ids = student.topk(5).indices  # the student's, in self-distillation
    held = teacher.log_softmax(-1).gather(-1, ids)
    tail = (1 - held.exp().sum(-1)).log()
    sparse = SparseLogits(ids, held, tail, V, "tail_bucket")
    found = evaluated(objective, {"student_logits": student, "teacher_logits": sparse})
    assert_same(given, found.sum(), loss.sum(), 1e-6)


def test_uld_is_the_sequence_mean_when_its_logits_are_shifted():
    from trl.experimental.gold.gold_trainer import ULDLoss

    given = pair()
    more = torch.randn(B, T, V + 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.5,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=False,
        uld_token_merge_strategy="bayesian",  # the default, "observed", compares logits one position late
    )
    labels = torch.cat([torch.full((B, 1), IGNORED), given.labels], 1)  # theirs are shifted by the loss
    student, teacher = (torch.cat([z, torch.zeros_like(z[:, :1])], 1) for z in (given.student, more))
    ids = labels.clamp(min=0)
    loss = ULDLoss(config)(student, teacher, labels, labels, ids, ids)
    n = int(given.mask.sum())
    sequence = torch.arange(B)[:, None].expand(B, T)[given.mask]
    pairs = Pairs(torch.arange(n), torch.arange(n), sequence)
    rows = universal_logit(given.student[given.mask], more[given.mask], pairs)
    lengths = given.mask.sum(-1, keepdim=True).expand_as(given.mask)[given.mask]
    assert_same(given, 1.5 * (rows / lengths).sum() / B, loss)
