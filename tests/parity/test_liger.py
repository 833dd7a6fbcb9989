"""Ours against Liger's chunked losses as installed; they run uncompiled on a CPU.

Run: make parity ARGS=tests/parity/test_liger.py
"""

from functools import partial

import pytest
import torch
from torch.nn import functional

from kd.objectives.divergence import generalized_jsd
from tests.parity.pair import V, assert_same, ours, pair

betas = pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])


def theirs(given, **settings):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    eye = torch.eye(V, dtype=given.student.dtype)
    fused = LigerFusedLinearJSDLoss(**settings, compiled=False, chunk_size=4)
    return fused(given.student.flatten(0, 1), eye, given.teacher.flatten(0, 1), eye, given.labels.flatten())


@betas
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fused_linear_jsd_is_jsd_with_the_same_beta(beta, temperature):
    given = pair()
    loss = theirs(given, weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature)
    assert_same(given, ours(given, partial(generalized_jsd, beta=beta, temperature=temperature)), loss, 1e-6)


def test_its_default_is_half_of_it_and_half_cross_entropy():
    given = pair()
    labels = given.labels[given.mask]
    sft = functional.cross_entropy(given.student[given.mask], labels)
    expected = 0.5 * sft + 0.5 * ours(given, partial(generalized_jsd, beta=0.5))
    assert_same(given, expected, theirs(given), 1e-6)
