import pytest
import torch

from kd.kernels.packed import Product


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 65])
@pytest.mark.parametrize(("dtype", "digits"), [("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 8e-3)])
def test_it_is_the_product(dtype, digits, rows, bias, pack):
    x, weight, b = torch.randn(3, rows, 100), torch.randn(37, 100), torch.randn(37)
    x, weight, b = (t.to(getattr(torch, dtype)) for t in (x, weight, b))
    expected = x.double() @ weight.double().T + (b.double() if bias else 0)
    product = Product(weight, b if bias else None, pack=pack)
    found = product(x)
    assert found.dtype == weight.dtype
    assert (found - expected).norm() < digits * expected.norm()


def test_the_argument_is_cast_and_nothing_is_recorded():
    weight = torch.randn(5, 4, requires_grad=True)
    found = Product(weight)(torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True))
    assert found.dtype == torch.float32
    assert not found.requires_grad
