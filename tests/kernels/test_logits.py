"""Lazy logits are the logits, some rows at a time.

Run: python -m pytest tests/kernels/test_logits.py
"""

from math import log

import pytest
import torch

from kd.kernels.logits import DenseLogits, HeadLogits, Logits, finish, label_logprobs, project
from kd.types import Head


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_head_by_hand():
    # h W^T + b = (1*3 + 2*4 + 1, 1*0 + 2*5 - 2) = (12, 8); scaled by 1/2: (6, 4); capped: 4 tanh(z/4)
    hidden, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([1.0, -2.0])
    logits = HeadLogits(hidden, Head(weight, bias, scale=0.5, soft_cap=4.0)).rows(slice(None))
    torch.testing.assert_close(logits, 4 * torch.tanh(torch.tensor([[1.5, 1.0]])))
    torch.testing.assert_close(project(hidden, weight, bias), torch.tensor([[12.0, 8.0]]))
    torch.testing.assert_close(finish(torch.tensor([[12.0, 8.0]]), Head(weight)), torch.tensor([[12.0, 8.0]]))


def test_rows_are_rows_of_the_whole():
    lazy = HeadLogits(draw(7, 5), Head(draw(11, 5)))
    dense = DenseLogits(lazy.rows(slice(None)))
    assert (lazy.n, lazy.size) == (dense.n, dense.size) == (7, 11)
    for rows in (slice(0, 3), slice(3, 7), slice(7, 7)):
        torch.testing.assert_close(lazy.rows(rows), dense.rows(rows))
    assert isinstance(lazy, Logits)
    assert isinstance(dense, Logits)


def test_label_logprobs_by_hand():
    logits = torch.tensor([[log(1.0), log(3.0)], [log(1.0), log(1.0)]]) + 5
    torch.testing.assert_close(label_logprobs(logits, torch.tensor([1, 0])), torch.tensor([log(0.75), log(0.5)]))


def test_label_logprobs_are_summed_in_float32():
    logits = (2 * draw(4, 50_000)).to(torch.bfloat16)
    labels = torch.arange(4)
    found = label_logprobs(logits, labels)
    assert found.dtype == torch.float32
    exact = label_logprobs(logits.double(), labels)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [60, 1000])
def test_label_logprobs_of_saturated_logits_have_a_gradient(factor):
    logits = (factor * draw(4, 50).float()).requires_grad_()
    (gradient,) = torch.autograd.grad(label_logprobs(logits, torch.arange(4)).sum(), logits)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(4), rtol=0, atol=1e-5)  # one-hot minus softmax
