"""Products by the other library are those of torch, with their gradients, and only where they are worth it.

Run: python -m pytest tests/kernels/test_products.py
"""

import pytest
import torch
from torch.nn.functional import linear

from kd.kernels import products
from kd.kernels.products import LARGE, faster_linear

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch was built without oneDNN",
)


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """How often oneDNN is asked."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += "mkldnn" in str(func)
        return func(*args, **(kwargs or {}))


def problem(dtype=torch.float32, n=150, d=256, m=512):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, n // 3, d, generator=draw, dtype=torch.float64)
    weight, bias, grad = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((m, d), (m,), (3, n // 3, m)))
    return [t.to(dtype).requires_grad_(i < 3) for i, t in enumerate((x, weight, bias, grad))]


@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_are_those_in_float64(biased):
    x, weight, bias, grad = problem()
    exact = problem(torch.float64)
    leaves, wide = ([t[0], t[1], *([t[2]] if biased else [])] for t in ((x, weight, bias), exact[:3]))
    with faster_linear(CPU), Calls() as calls:
        value = linear(*leaves)
        found = torch.autograd.grad(value, leaves, grad)
    assert calls.seen == 2  # the gradients of input and weight
    expected = linear(*wide)
    for mine, theirs in zip((value, *found), (expected, *torch.autograd.grad(expected, wide, exact[3])), strict=True):
        assert (mine.double() - theirs).norm() <= 1e-6 * theirs.norm()


def test_a_frozen_weight_costs_no_gradient():
    x, weight, _, grad = problem()
    with faster_linear(CPU), Calls() as calls:
        torch.autograd.grad(linear(x, weight.detach()), [x], grad)
    assert calls.seen == 1


def test_without_gradient_the_value_is_the_other_librarys():
    x, weight, bias, _ = problem()
    exact = linear(*problem(torch.float64)[:3])
    with torch.no_grad(), faster_linear(CPU), Calls() as calls:
        value = linear(x, weight, bias)
    assert calls.seen == 1
    assert (value.double() - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize(
    "case",
    [
        lambda: problem(torch.bfloat16)[:2],  # torch uses oneDNN for these itself
        lambda: problem(torch.float64)[:2],
        lambda: problem(n=3, d=8, m=LARGE // 3 // 8 - 1)[:2],  # too small
    ],
    ids=["bfloat16", "float64", "small"],
)
def test_other_products_stay_with_torch(case):
    x, weight = case()
    with torch.no_grad(), faster_linear(CPU), Calls() as calls:
        found = linear(x, weight)
    assert calls.seen == 0
    assert torch.equal(found, linear(x, weight))


def test_autocast_has_the_last_word():
    x, weight = problem()[:2]
    with torch.autocast("cpu", torch.bfloat16), faster_linear(CPU):
        assert linear(x, weight).dtype == torch.bfloat16


def test_it_lasts_for_the_given_time():
    x, weight = problem()[:2]
    with Calls() as calls:
        with torch.no_grad(), faster_linear(CPU):
            linear(x, weight)
        with torch.no_grad():
            linear(x, weight)
    assert calls.seen == 1
