"""The linear map between the hidden spaces of two models after which one head gives the logits of the other.

Where the target's head is the identity and the source's twice the identity, M = 2 I keeps all logits:

>>> import torch
>>> from kd.objectives.heads import carried
>>> from kd.types import Head
>>> ids = torch.arange(2)
>>> carried(Head(2 * torch.eye(2)), ids, Head(torch.eye(2)), ids)
tensor([[2., 0.],
        [0., 2.]], dtype=torch.float64)
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kd.types import Head

Ids = Int[Tensor, " K"]
RESOLUTION = 1e-12  # eigenvalues of W^T W below this share of the largest are 0: singular values below 1e-6, float32's
ROWS = 8192  # of a head in float64 at a time


@torch.no_grad()
def carried(source: Head, source_ids: Ids, target: Head, target_ids: Ids) -> Float[Tensor, "T S"]:
    """M = (c_t W_t)^+ c_s W_s, in float64: of all M that bring c_t W_t M nearest to c_s W_s the smallest.

    W are the rows of the two heads at K ids that mean the same, c the heads' scales. So `target` gives M x the logits
    that `source` gives x: exactly, if W_s lies in what W_t spans, else with the least squared difference of logits for
    states x of one covariance. Soft caps come after both and are left out: two heads with one cap are as near after it,
    two with different ones only where logits are small.

    Solved from W_t^T W_t by its eigenvectors, so that no head is copied in float64; the result is the same on every
    call and rank.

    Raises ValueError if the two biases differ at these ids: no linear map can make up for that.
    """
    _check_biases(source, source_ids, target, target_ids)
    devices = (source.weight.device, target.weight.device)
    device = next((d for d in devices if d.type != "cpu"), devices[0])
    squares = torch.zeros(2 * target.weight.shape[1:], dtype=torch.float64, device=device)
    products = squares.new_zeros(target.weight.shape[1], source.weight.shape[1])
    for ours, theirs in zip(target_ids.split(ROWS), source_ids.split(ROWS), strict=True):
        w, v = (_rows(head, ids, device) for head, ids in ((target, ours), (source, theirs)))
        squares += w.T @ w
        products += w.T @ v
    values, vectors = torch.linalg.eigh(squares)
    kept = vectors[:, values > RESOLUTION * values[-1]]
    return kept @ ((kept.T @ products) / values[values > RESOLUTION * values[-1], None])


def _rows(head: Head, ids: Ids, device: torch.device) -> Float[Tensor, "k D"]:
    return head.scale * head.weight[ids.to(head.weight.device)].to(device, torch.float64)


def _check_biases(source: Head, source_ids: Ids, target: Head, target_ids: Ids) -> None:
    ours, theirs = _bias(target, target_ids), _bias(source, source_ids)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "start=pseudo_inverse carries logits over by a linear map, but the heads' biases differ by "
            f"up to {(ours - theirs).abs().max():.3g} at ids that mean the same; take start=random"
        )


def _bias(head: Head, ids: Ids) -> Float[Tensor, " K"]:
    if head.bias is None:
        return torch.zeros(len(ids), dtype=torch.float64)
    return head.scale * head.bias[ids.to(head.bias.device)].to("cpu", torch.float64)
