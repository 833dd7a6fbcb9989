"""Several teachers' logits as one, by hand on three ids, and inside chunks.

Run: python -m pytest tests/kernels/test_combined.py
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from kd.kernels import over_chunks
from kd.kernels.combined import MeanLogits, RoutedLogits
from kd.kernels.logits import DenseLogits, HeadLogits, Logits
from kd.objectives.divergence import cross_entropy, forward_kl, generalized_jsd, reverse_kl
from kd.signals import requires
from kd.types import Head

TERMS = {"fkl": forward_kl, "rkl": reverse_kl, "jsd": generalized_jsd, "sft": cross_entropy}


def said(*probabilities: float) -> DenseLogits:
    """One row; the constant is what a softmax does not see."""
    return DenseLogits(torch.tensor([probabilities], dtype=torch.float64).log() + 3.0)


def softmax(logits: Logits) -> list[float]:
    return logits.rows(slice(0, logits.n)).softmax(-1)[0].tolist()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head(n: int = 12, ids: int = 11, width: int = 5, seed: int = 0) -> HeadLogits:
    return HeadLogits(draw(n, width, seed=seed), Head(draw(ids, width, seed=seed + 100)))


@dataclass(frozen=True)
class Watched:
    """Logits that remember how many rows they were asked for."""

    logits: Logits
    asked: list[int] = field(default_factory=list)

    @property
    def n(self) -> int:
        return self.logits.n

    @property
    def size(self) -> int:
        return self.logits.size

    def rows(self, index: slice) -> Tensor:
        made = self.logits.rows(index)
        self.asked.append(len(made))
        return made

    def cast(self) -> "Watched":
        return replace(self, logits=self.logits.cast())


def test_the_mean_of_probabilities_by_hand():
    # (1 2 5)/8 and (4 2 2)/8: halves give (5 4 7)/16; three to one gives (3*1+4, 3*2+2, 3*5+2)/32
    first, second = said(1, 2, 5), said(4, 2, 2)
    even = MeanLogits([first, second], [0.5, 0.5], "probabilities")
    assert softmax(even) == pytest.approx([5 / 16, 4 / 16, 7 / 16])
    torch.testing.assert_close(even.rows(slice(0, 1)).exp().sum(), torch.ones((), dtype=torch.float64))
    uneven = MeanLogits([first, second], [0.75, 0.25], "probabilities")
    assert softmax(uneven) == pytest.approx([7 / 32, 8 / 32, 17 / 32])


def test_the_mean_of_logits_by_hand():
    # softmax of the mean ~ sqrt(1*4), sqrt(4*1), sqrt(9*1) = 2 2 3; three to one ~ 1^3/4 4^1/4, ... with 16 and 1
    even = MeanLogits([said(1, 4, 9), said(4, 1, 1)], [0.5, 0.5], "logits")
    assert softmax(even) == pytest.approx([2 / 7, 2 / 7, 3 / 7])
    uneven = MeanLogits([said(1, 16, 1), said(16, 1, 1)], [0.75, 0.25], "logits")
    assert softmax(uneven) == pytest.approx([2 / 11, 8 / 11, 1 / 11])  # 16^(1/4), 16^(3/4), 1


def test_an_id_that_one_excludes():
    first, second = said(1, 0, 3), said(1, 2, 1)
    # excluded by the product, a quarter by the mixture
    assert softmax(MeanLogits([first, second], [0.5, 0.5], "logits"))[1] == 0.0
    assert softmax(MeanLogits([first, second], [0.5, 0.5], "probabilities")) == pytest.approx([0.25, 0.25, 0.5])
    nobody = MeanLogits([said(1, 0, 3), said(1, 0, 1)], [0.5, 0.5], "probabilities")
    assert softmax(nobody) == pytest.approx([0.375, 0.0, 0.625])


def test_temperature_is_applied_to_the_mixture():
    # the mixture (1 4 4)/9 at T = 2 is (1 2 2)/5; tempering (1 1 7)/9 and (1 7 1)/9 first gives 1/(2 + 7^1/2) = 0.215
    mixture = MeanLogits([said(1, 1, 7), said(1, 7, 1)], [0.5, 0.5], "probabilities").rows(slice(0, 1))
    student = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).log() * 2.0
    assert forward_kl(student, mixture, temperature=2.0).item() == pytest.approx(0.0, abs=1e-12)
    before = torch.stack([said(1, 1, 7).values, said(1, 7, 1).values]).div(2).softmax(-1).mean(0)
    assert before[0, 0].item() == pytest.approx(0.2153, abs=1e-4)


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_two_equal_members_are_one(of):
    one = head()
    both = MeanLogits([one, one], [0.3, 0.7], of)
    everything = slice(0, 12)
    torch.testing.assert_close(both.rows(everything).log_softmax(-1), one.rows(everything).log_softmax(-1))
    assert (both.n, both.size) == (12, 11)


OWNER = torch.tensor([1, 0, 0, 1, 2, 1, 0, 2, 2, 1, 0, 0])


def routed() -> tuple[RoutedLogits, Tensor]:
    """Three members that hold their own rows only, and all rows."""
    whole = [head(seed=k).rows(slice(0, 12)) for k in range(3)]
    members = [DenseLogits(rows[k == OWNER]) for k, rows in enumerate(whole)]
    return RoutedLogits(members, OWNER), torch.stack(whole)[OWNER, torch.arange(12)]


@pytest.mark.parametrize(
    "index", [slice(0, 12), slice(3, 8), slice(5, 6), slice(4, 4), torch.tensor([11, 0, 4, 4])], ids=str
)
def test_every_row_is_its_owners(index):
    logits, expected = routed()
    assert (logits.n, logits.size) == (12, 11)
    torch.testing.assert_close(logits.rows(index), expected[index], rtol=0, atol=0)


def combinations() -> dict[str, Logits]:
    members = [head(seed=1), head(seed=2), head(seed=3)]
    return {
        "logits": MeanLogits(members, [0.2, 0.3, 0.5], "logits"),
        "probabilities": MeanLogits(members, [0.2, 0.3, 0.5], "probabilities"),
        "routed": routed()[0],
    }


@pytest.mark.parametrize("name", combinations())
def test_chunked_equals_full(name):
    """Value and gradients, and nobody was asked for more than a chunk."""
    logits = combinations()[name]
    whole = DenseLogits(logits.rows(slice(0, 12)))
    watched = Watched(logits)
    found = []
    for teacher, chunk in ((watched, 5), (whole, 12)):
        student = head(seed=7)
        leaves = (student.hidden.requires_grad_(), student.head.weight.requires_grad_())
        signals = {"teacher_logits": teacher, "labels": torch.arange(12) % 11}
        weights = {name: torch.linspace(0.1, 1.0, 12, dtype=torch.float64) for name in TERMS}
        wanted = {name: requires(term) for name, term in TERMS.items()}
        loss, values = over_chunks(TERMS, student, signals, weights, wanted, chunk=chunk)
        found.append((loss.detach(), *values.values(), *torch.autograd.grad(loss, leaves)))
    assert watched.asked == [5, 5, 2]
    for chunked, full in zip(*found, strict=True):
        torch.testing.assert_close(chunked, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", combinations())
def test_under_autocast_members_are_cast_once(name):
    logits = combinations()[name]
    exact = logits.rows(slice(0, 12)).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = logits.cast()
        made = cast.rows(slice(0, 12))
    members = [member for member in cast.members if isinstance(member, HeadLogits)]
    assert all(member.head.weight.dtype == torch.bfloat16 for member in members)
    assert made.dtype in (torch.float32, torch.float64)  # combined wider than it was multiplied
    torch.testing.assert_close(made.log_softmax(-1).double(), exact, rtol=0.1, atol=0.1)
