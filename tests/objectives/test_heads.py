"""The map between two heads' spaces: exact where it can be, else torch's own least squares.

Run: python -m pytest tests/objectives/test_heads.py
"""

import pytest
import torch

from kd.objectives import heads
from kd.objectives.heads import carried
from kd.types import Head
from tests.objectives.cases import draw

ALL = torch.arange(30)


def test_by_hand():
    """W_t = diag(2, 4), W_s = (1 0; 1 1): M = W_t^-1 W_s; the ids that mean the same stand in another order."""
    target = Head(torch.tensor([[0.0, 4.0], [2.0, 0.0], [9.0, 9.0]]))
    source = Head(torch.tensor([[1.0, 0.0], [7.0, 7.0], [1.0, 1.0]]))
    found = carried(source, torch.tensor([0, 2]), target, torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0], [0.25, 0.25]], dtype=torch.float64))
    scaled = carried(source._replace(scale=3.0), torch.tensor([0, 2]), target._replace(scale=0.5), torch.tensor([1, 0]))
    torch.testing.assert_close(scaled, 6 * found)


@pytest.mark.parametrize("widths", [(4, 6), (6, 4), (5, 5)])
def test_it_is_least_squares(widths):
    source, target = (Head(draw(30, width, seed=width + k)) for k, width in enumerate(widths))
    expected = torch.linalg.lstsq(target.weight, source.weight).solution
    torch.testing.assert_close(carried(source, ALL, target, ALL), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ids", "rank"), [(3, 6), (30, 2)])
def test_of_many_solutions_it_is_the_smallest(ids, rank):
    """Fewer ids than widths, or a head that spans less than its width."""
    source, target = Head(draw(30, 4)), Head(draw(30, rank, seed=1) @ draw(rank, 6, seed=2))
    expected = torch.linalg.pinv(target.weight[:ids]) @ source.weight[:ids]
    torch.testing.assert_close(carried(source, ALL[:ids], target, ALL[:ids]), expected, rtol=1e-6, atol=1e-8)


def test_pieces_of_a_head_make_no_difference_and_precision_little(monkeypatch):
    source, target = Head(draw(30, 4)), Head(draw(30, 6, seed=1))
    whole = carried(source, ALL, target, ALL)
    monkeypatch.setattr(heads, "ROWS", 7)
    torch.testing.assert_close(carried(source, ALL, target, ALL), whole, rtol=1e-12, atol=1e-12)
    narrow = (Head(head.weight.float()) for head in (source, target))
    rounded = carried(next(narrow), ALL, next(narrow), ALL)
    assert rounded.dtype == torch.float64
    torch.testing.assert_close(rounded, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(carried(source, ALL, target, ALL), carried(source, ALL, target, ALL))


def test_biases():
    """What both add to an id is no matter; what one adds alone, no linear map can."""
    source, target, bias = Head(draw(30, 4)), Head(draw(30, 6, seed=1)), draw(30, seed=2)
    found = carried(source._replace(bias=bias, scale=2.0), ALL, target._replace(bias=2 * bias), ALL)
    torch.testing.assert_close(found, 2 * carried(source, ALL, target, ALL))
    with pytest.raises(ValueError, match=r"biases differ by up to .*; take start=random"):
        carried(source._replace(bias=bias), ALL, target, ALL)
    with pytest.raises(ValueError, match="differ by up to"):
        carried(source, ALL, target._replace(bias=bias), ALL)


def test_no_gradient_reaches_a_head():
    source, target = (Head(draw(30, 4, seed=k).requires_grad_()) for k in (0, 1))
    assert not carried(source, ALL, target, ALL).requires_grad
