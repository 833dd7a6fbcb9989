"""What the chunked head pass allocates and multiplies.

Run: python -m pytest tests/kernels/test_cost.py
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.kernels.logits import HeadLogits
from kd.objectives.divergence import forward_kl
from kd.types import Head
from tests.kernels.problem import COMBINATIONS, D, assert_near, chunked, combinations, every_objective, full, problem

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.mkldnn._linear_pointwise)


class Spy(TorchDispatchMode):
    """Sees every tensor that any operation makes, forward and backward, and counts the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.products = 0
        self.casts = 0  # of whole heads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *made])
        self.casts += function.overloadpacket is torch.ops.aten._to_copy and result.shape == (IDS, D)
        self.products += function.overloadpacket in PRODUCTS
        return result


def test_under_autocast_the_heads_are_converted_once():
    terms = {"fkl": forward_kl}
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    adapted = given.student.head.weight * 1.0  # no leaf, as under LoRA: autocast remembers leaves only
    given = replace(given, student=HeadLogits(given.student.hidden, Head(adapted)))
    with torch.autocast("cpu", torch.bfloat16), Spy() as spy:
        chunked(terms, given, CHUNK)
    assert spy.casts == 2  # student's and teacher's, not once a chunk


ROWS, IDS, CHUNK = 64, 97, 8  # the head itself has IDS * D < 2 * CHUNK * IDS elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_objective
def test_no_tensor_holds_the_logits_of_two_chunks(terms, dtype):
    given = problem(terms, dtype, n=ROWS, ids=IDS, bias=True, soft_cap=30.0)
    with Spy() as spy:
        chunked(terms, given, CHUNK)[0].backward()
    assert spy.largest < 2 * CHUNK * IDS
    assert spy.largest >= CHUNK * IDS  # it did look


def test_the_plain_path_would_be_seen():
    terms = COMBINATIONS["sft and fkl"]
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    with Spy() as spy:
        full(terms, given)[0].backward()
    assert spy.largest >= ROWS * IDS


@combinations
def test_all_terms_share_one_head_pass(terms):
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    with Spy() as spy:
        chunked(terms, given, CHUNK)[0].backward()
    assert spy.products == (ROWS // CHUNK) * 4  # a chunk: logits of both models, gradients of hidden states and head


def test_without_gradients_only_logits_are_made():
    terms = COMBINATIONS["everything"]
    given = problem(terms, torch.float32, n=ROWS, ids=IDS)
    expected_loss, expected = full(terms, given)
    with torch.no_grad(), Spy() as spy:
        loss, values = chunked(terms, given, CHUNK)
    assert spy.products == (ROWS // CHUNK) * 2
    assert not loss.requires_grad
    assert_near(loss, expected_loss, 1e-5)
    for name, value in expected.items():
        assert_near(values[name], value, 1e-5)
