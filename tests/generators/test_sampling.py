import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from kd.generators.sampling import Sampled, drawn, drawn_from_nucleus, logprobs_of, nucleus
from kd.seeding import seeded

THIRDS = torch.tensor([[0.5, 0.3, 0.2]]).log()


def random_logits(rows: int, ids: int, scale: float, dtype=torch.float64) -> Tensor:
    with seeded(0, "logits"):
        return scale * torch.randn(rows, ids, dtype=dtype)


def plain_nucleus(logits: Tensor, top_p: float) -> list[set[int]]:
    """By the definition: the likeliest first, until they reach the share."""
    chosen = []
    for row in logits.softmax(-1).tolist():
        order = sorted(range(len(row)), key=lambda i: -row[i])
        ids, share = set(), 0.0
        for i in order:
            if share >= top_p:
                break
            ids.add(i)
            share += row[i]
        chosen.append(ids)
    return chosen


@pytest.mark.parametrize(
    ("u", "ids"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (math.nextafter(1, 0), 2)]
)
def test_an_id_is_drawn_where_the_running_sum_passes_the_random_number(monkeypatch, u, ids):
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), u, dtype=torch.float64))
    assert drawn(THIRDS)[0].tolist() == [ids]


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("place", [0, 255, 256, 299, 511, 600])
def test_what_has_no_probability_is_never_drawn(monkeypatch, u, place):
    """Single ids at the borders of blocks, for the smallest and the greatest random number."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), u, dtype=torch.float64))
    logits = torch.full((2, 601), -torch.inf)
    logits[:, place] = 3.0
    ids, logprobs = drawn(logits)
    assert ids.tolist() == [place, place]
    assert logprobs.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ids", [3, 256, 700])
def test_ids_come_as_often_as_softmax_states(ids):
    """A right sampler fails one seed in a thousand; this seed is not one of them."""
    logits, draws = random_logits(1, ids, 1.0), 40_000
    with seeded(1, "draws"):
        seen = torch.bincount(drawn(logits.expand(draws, -1))[0], minlength=ids)
    expected = logits[0].softmax(-1) * draws
    rare = expected < 5  # put together, as the test wants
    observed, expected = ([*x[~rare].tolist(), float(x[rare].sum())] for x in (seen, expected))
    if not expected[-1]:
        observed, expected = observed[:-1], expected[:-1]
    assert chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_logprob_is_that_of_the_tempered_distribution(temperature):
    logits = random_logits(50, 300, 2.0)
    with seeded(1, "draws"):
        ids, logprobs = Sampled(temperature)([logits])
    expected = (logits / temperature).log_softmax(-1)[torch.arange(50), ids]
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-12)
    assert torch.allclose(logprobs_of(logits / temperature, ids), expected, rtol=0, atol=1e-12)


def test_the_logprob_has_the_digits_of_float32():
    logits = random_logits(50, 50_000, 3.0, torch.float32)
    with seeded(1, "draws"):
        ids, logprobs = drawn(logits)
    assert logprobs.dtype == torch.float32
    exact = logits.double().log_softmax(-1)[torch.arange(50), ids]
    assert (logprobs - exact).abs().max() < 5e-6


def test_temperature_zero_takes_the_likeliest_and_no_random_number():
    state = torch.get_rng_state()
    ids, logprobs = Sampled(0.0, top_p=0.5)([random_logits(4, 30, 1.0), random_logits(4, 30, -1.0)])
    assert ids.tolist() == random_logits(4, 30, 1.0).argmax(-1).tolist()
    assert logprobs.tolist() == [0, 0, 0, 0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("ids", "scale"), [(7, 1.0), (300, 1.0), (5000, 4.0), (5000, 0.3)])
def test_a_nucleus_is_what_its_definition_states(ids, scale, top_p):
    """The last needs the whole vocabulary sorted, the others a part."""
    logits = random_logits(3, ids, scale)
    values, order = nucleus(logits.log_softmax(-1), top_p)
    found = [set(ids[kept].tolist()) for ids, kept in zip(order, values > -torch.inf, strict=True)]
    assert found == plain_nucleus(logits, top_p)
    assert torch.allclose(values.exp()[:, 0], logits.softmax(-1).amax(-1))


def test_each_row_of_a_batch_has_its_own_nucleus():
    """A sure row and one that needs thousands of ids, together as alone: the sort goes as far as the widest needs."""
    rows = [random_logits(1, 5000, scale) for scale in (20.0, 0.3, 4.0)]
    values, order = nucleus(torch.cat(rows).log_softmax(-1), 0.9)
    together = [set(ids[kept].tolist()) for ids, kept in zip(order, values > -torch.inf, strict=True)]
    assert together == [found for row in rows for found in plain_nucleus(row, 0.9)]
    assert len(together[0]) < 10 < 2000 < len(together[1])


@pytest.mark.parametrize(
    ("chances", "top_p", "count"),
    [
        ((0.5, 0.25, 0.25), 0.5, 1),  # reached exactly: no further id
        ((0.25, 0.25, 0.25, 0.25), 0.5, 2),  # of ids that are as likely, the fewest
        ((0.25, 0.25, 0.25, 0.25), 0.6, 3),
        ((0.5, 0.125, 0.125, 0.125, 0.125), 0.75, 3),
        ([1 / 1024] * 1024, 0.5, 512),  # more than are looked at first
    ],
)
def test_a_nucleus_among_equals_holds_the_fewest_that_reach_the_share(chances, top_p, count):
    values, order = nucleus(torch.tensor([chances], dtype=torch.float64).log(), top_p)
    kept = order[values > -torch.inf].tolist()
    assert len(kept) == len(set(kept)) == count
    assert sum(chances[i] for i in kept) >= top_p > sum(chances[i] for i in kept[:-1])
    with seeded(1, "draws"):
        ids, logprobs = drawn_from_nucleus(torch.tensor([chances]).log().expand(50, -1), top_p)
    assert set(ids.tolist()) <= set(kept)
    shares = torch.tensor([chances[i] for i in ids.tolist()]) / sum(chances[i] for i in kept)
    assert torch.allclose(logprobs, shares.log(), atol=1e-5)


@pytest.mark.parametrize(("top_p", "ids"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1e-9, 1)])
def test_a_nucleus_ends_with_the_id_that_reaches_the_share(top_p, ids):
    assert int(nucleus(THIRDS, top_p)[0].isfinite().sum()) == ids


def test_ids_of_a_nucleus_come_as_often_as_their_share_of_it():
    """(0.5, 0.3) of (0.5, 0.3, 0.2) is (5/8, 3/8). The chance that a right sampler fails is below 1e-4."""
    with seeded(1, "draws"):
        ids, logprobs = drawn_from_nucleus(THIRDS.expand(10_000, -1), 0.7)
    assert set(ids.tolist()) == {0, 1}
    assert abs((ids == 0).double().mean() - 5 / 8) < 4 * math.sqrt(5 / 8 * 3 / 8 / 10_000)
    expected = torch.tensor([5 / 8, 3 / 8]).log()[ids]
    assert torch.allclose(logprobs, expected, atol=1e-6)
