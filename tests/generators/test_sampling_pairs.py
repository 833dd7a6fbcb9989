"""Tokens in whose choice the teacher has a say, against enumeration and against the frequencies of many draws."""

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from kd.generators.sampling_pairs import Interleaved, Mixed, tempered
from kd.seeding import seeded

DRAWS = 20_000
STUDENT = [0.6, 0.3, 0.1]
TEACHER = [0.1, 0.2, 0.7]


def logits(*probabilities: float, rows: int = DRAWS) -> Tensor:
    """Unnormalised: what is added to all of a row's logits changes nothing."""
    return (torch.tensor(probabilities).log() + 3.0).expand(rows, -1)


def random_pair(size: int, rows: int = DRAWS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=generator).mul(1.5).expand(rows, -1) for _ in range(2)]


def check_draws(choose, pair: list[Tensor], expected: list[float]) -> None:
    """What is said of each id is its probability, and it comes that often."""
    with seeded(7, "draws"):
        ids, logprobs = choose(pair)
    torch.testing.assert_close(logprobs.exp(), torch.tensor(expected).to(logprobs)[ids], rtol=1e-5, atol=1e-7)
    counts = torch.bincount(ids, minlength=len(expected)).tolist()
    possible = [i for i, p in enumerate(expected) if p > 0]
    assert sum(counts[i] for i in possible) == len(ids)
    if len(possible) > 1:
        assert chisquare([counts[i] for i in possible], [expected[i] * len(ids) for i in possible]).pvalue > 1e-3


# ---- Mixed -----------------------------------------------------------------------------------------------------------


def test_a_mixture_by_hand():
    """0.2 * (0.1, 0.2, 0.7) + 0.8 * (0.6, 0.3, 0.1) = (0.50, 0.28, 0.22)."""
    check_draws(Mixed(0.2), [logits(*STUDENT), logits(*TEACHER)], [0.50, 0.28, 0.22])


def test_a_heated_mixture():
    """At temperature 0.5 probabilities are squared first: (36, 9, 1)/46 and (1, 4, 49)/54."""
    expected = [0.75 * a / 46 + 0.25 * b / 54 for a, b in zip((36, 9, 1), (1, 4, 49), strict=True)]
    check_draws(Mixed(0.25, temperature=0.5), [logits(*STUDENT), logits(*TEACHER)], expected)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, STUDENT), (1.0, TEACHER)])
def test_at_its_ends_a_mixture_is_one_of_the_two(alpha, expected):
    check_draws(Mixed(alpha), [logits(*STUDENT), logits(*TEACHER)], expected)


def test_greedy_parts_are_chosen_between():
    """Nine tenths on the student's likeliest, a tenth on the teacher's."""
    check_draws(Mixed(0.1, temperature=0.0), [logits(*STUDENT), logits(*TEACHER)], [0.9, 0.0, 0.1])


def test_an_id_that_only_one_of_the_two_would_write():
    pair = [torch.tensor([[0.0, -math.inf, 0.0]]).expand(DRAWS, -1), logits(*TEACHER)]
    check_draws(Mixed(0.5), pair, [0.30, 0.10, 0.60])


# ---- Interleaved -----------------------------------------------------------------------------------------------------


def test_interleaved_by_hand():
    """The teacher's two likeliest are 2 and 1; the student proposes 0 with 0.6, and then the teacher writes:

    P(0) = 0.6 * 0.1 = 0.06, P(1) = 0.3 + 0.6 * 0.2 = 0.42, P(2) = 0.1 + 0.6 * 0.7 = 0.52.
    """
    choose = Interleaved(2, temperature=1.0, teacher_temperature=1.0)
    check_draws(choose, [logits(*STUDENT), logits(*TEACHER)], [0.06, 0.42, 0.52])
    kept, proposed = choose.take_kept()
    assert proposed == DRAWS
    assert chisquare([kept, DRAWS - kept], [0.4 * DRAWS, 0.6 * DRAWS]).pvalue > 1e-3
    assert choose.take_kept() == (0.0, 0.0)


def test_interleaved_with_the_papers_nuclei():
    """Student at T = 0.5: (36, 9, 1)/46, of which top_p = 0.9 keeps (36, 9)/45; teacher at T = 1, top_p = 0.5: id 2.

    The teacher's likeliest is 2: every proposal falls, and 2 is written.
    """
    nuclei = {"temperature": 0.5, "top_p": 0.9, "teacher_temperature": 1.0, "teacher_top_p": 0.5}
    check_draws(Interleaved(1, **nuclei), [logits(*STUDENT), logits(*TEACHER)], [0.0, 0.0, 1.0])
    check_draws(Interleaved(2, **nuclei), [logits(*STUDENT), logits(*TEACHER)], [0.0, 0.2, 0.8])
    check_draws(Interleaved(3, **nuclei), [logits(*STUDENT), logits(*TEACHER)], [0.8, 0.2, 0.0])


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_interleaved_by_enumeration_of_both_draws(top_k):
    """Every proposal with every replacement, on eight ids."""
    pair = random_pair(8)
    q, p = ((z[0].double() / t).softmax(-1).tolist() for z, t in zip(pair, (0.7, 0.4), strict=True))
    best = sorted(range(8), key=lambda i: -pair[1][0, i].item())[:top_k]
    expected = [0.0] * 8
    for proposal in range(8):
        for replacement in range(8):
            expected[proposal if proposal in best else replacement] += q[proposal] * p[replacement]
    check_draws(Interleaved(top_k, temperature=0.7, teacher_temperature=0.4), pair, expected)


def test_where_all_ids_are_among_the_top_the_student_writes_alone():
    """Proposals stand whatever the teacher would write; a larger k than there are ids is all of them."""
    choose = Interleaved(25, temperature=1.0, top_p=0.8, teacher_temperature=0.2)
    check_draws(choose, [logits(*STUDENT), logits(*TEACHER)], [2 / 3, 1 / 3, 0.0])
    assert choose.take_kept() == (DRAWS, DRAWS)


def test_equal_logits_are_not_all_among_the_top():
    """Three ids are as likely as each other; one of them is the top 1."""
    even = torch.zeros(1, 3)
    assert int(tempered(even, 0.0).exp().sum()) == 1
    with seeded(7, "draws"):
        choose = Interleaved(1, temperature=1.0, teacher_temperature=1.0)
        choose([logits(1 / 3, 1 / 3, 1 / 3), even.expand(DRAWS, -1)])
    assert choose.take_kept()[0] / DRAWS == pytest.approx(1 / 3, abs=0.02)


# ---- nuclei and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_p", "kept"), [(0.05, 1), (0.59, 1), (0.61, 2), (0.95, 3), (1.0, 3)])
def test_a_nucleus_is_the_fewest_ids_that_reach_top_p(top_p, kept):
    found = tempered(logits(0.3, 0.1, 0.6, rows=2), 1.0, top_p).exp()
    whole = [0.3 if kept > 1 else 0.0, 0.1 if kept > 2 else 0.0, 0.6]
    torch.testing.assert_close(found, torch.tensor([whole, whole]) / sum(whole))


def test_rows_are_apart():
    pair = [torch.stack([logits(*STUDENT, rows=1)[0], logits(*TEACHER, rows=1)[0]]), logits(*TEACHER, rows=2)]
    for choose in (Mixed(0.2), Interleaved(2, temperature=1.0, teacher_temperature=1.0)):
        with seeded(1, "rows"):
            ids, logprobs = choose(pair)
        told = [choose([z[i : i + 1].expand(DRAWS, -1) for z in pair]) for i in range(2)]
        for i, (others, values) in enumerate(told):
            torch.testing.assert_close(values[others == ids[i]][0], logprobs[i])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Mixed(1.2), "alpha=1.2 is not the teacher's share"),
        (lambda: Mixed(-0.1), "alpha=-0.1 is not the teacher's share"),
        (lambda: Mixed(0.2, temperature=-1.0), "temperature=-1.0 is negative"),
        (lambda: Interleaved(0, temperature=1.0, teacher_temperature=1.0), "top_k=0 would let no token"),
        (lambda: Interleaved(1, temperature=1.0, top_p=0.0, teacher_temperature=1.0), "top_p=0.0"),
        (lambda: Interleaved(1, temperature=1.0, teacher_temperature=1.0, teacher_top_p=2.0), "top_p=2.0"),
    ],
)
def test_settings_out_of_range(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
