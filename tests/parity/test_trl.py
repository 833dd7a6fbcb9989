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
from kd.objectives.spans import merged_spans
from kd.objectives.transport import universal_logit
from kd.signals import requires
from kd.types import Head, Pairs, Spans
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
    found, _ = evaluated(objective, {"student_logits": student, "teacher_logits": sparse})
    assert_same(given, found.sum(), loss.sum(), 1e-6)


class Vocabulary(dict):
    """As much of a tokenizer as TRL asks."""

    def get_vocab(self) -> dict[str, int]:
        return self


def other_vocabulary() -> torch.Tensor:
    """Logits of a teacher with six ids more."""
    return torch.randn(B, T, V + 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def their_uld(given, teacher, tokenizers=(None, None), **settings):
    """TRL's loss between rows that stand beside each other."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.5,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        **{"uld_skip_student_eos": False, "uld_skip_teacher_eos": False, **settings},
        use_extended_uld=False,
        uld_token_merge_strategy="bayesian",  # the default, "observed", compares logits one position late
    )
    labels = torch.cat([torch.full((B, 1), IGNORED), given.labels], 1)  # theirs are shifted by the loss
    shifted = (torch.cat([z, torch.zeros_like(z[:, :1])], 1) for z in (given.student, teacher))
    ids = labels.clamp(min=0)
    return ULDLoss(config, *tokenizers)(*shifted, labels, labels, ids, ids)


def beside(given) -> Pairs:
    """Every row beside itself; the last of a sequence ends it."""
    rows = torch.arange(int(given.mask.sum()))
    sequence = torch.arange(B)[:, None].expand(B, T)[given.mask]
    return Pairs(rows, rows, sequence, ends=sequence != torch.cat([sequence[1:], torch.tensor([B])]))


def lengths(given) -> torch.Tensor:
    return given.mask.sum(-1, keepdim=True).expand_as(given.mask)[given.mask]


def test_uld_is_the_sequence_mean_when_its_logits_are_shifted():
    given, more = pair(), other_vocabulary()
    rows = universal_logit(given.student[given.mask], more[given.mask], beside(given))
    assert_same(given, 1.5 * (rows / lengths(given)).sum() / B, their_uld(given, more))


def test_uld_without_the_end_token_is_the_mean_over_the_others():
    given, more = pair(), other_vocabulary()
    rows = universal_logit(given.student[given.mask], more[given.mask], beside(given), end_token=False)
    loss = their_uld(given, more, uld_skip_student_eos=True, uld_skip_teacher_eos=True)
    assert_same(given, 1.5 * (rows / (lengths(given) - 1).clamp(min=1)).sum() / B, loss)


@pytest.mark.parametrize("weights", [(None, None), (0.7, 2.0)])
@pytest.mark.parametrize("beta", [0.3, 0.5])
def test_gold_weighs_its_parts_by_the_shares_of_ids_where_no_weights_are_given(weights, beta):
    given, more = pair(), other_vocabulary()
    ours = Vocabulary({f"student {i}": i for i in range(V)} | {f"both {i}": i for i in range(5, 20)})
    theirs = Vocabulary({f"teacher {i}": i for i in range(V + 6)} | {f"both {i}": i + 9 for i in range(5, 20)})
    ids = torch.full((V + 6,), -1)
    ids[14:29] = torch.arange(5, 20)
    rows, labels = beside(given), given.labels[given.mask]
    found = merged_spans(
        given.student[given.mask],
        more[given.mask],
        labels,
        labels,
        Spans(rows.student, rows.student + 1, rows.teacher, rows.teacher + 1, rows.sequence),
        ids,
        beta=beta,
        matched_weight=weights[0],
        unmatched_weight=weights[1],
    )
    names = ("uld_hybrid_matched_weight", "uld_hybrid_unmatched_weight")
    settings = {"uld_use_hybrid_loss": True, "beta": beta, **dict(zip(names, weights, strict=True))}
    loss = their_uld(given, more, (ours, theirs), **settings)
    # probabilities are no less than 1e-8 to them, and beta is a float32 number
    assert_same(given, 1.5 * (found / lengths(given)).sum() / B, loss, 1e-6)
