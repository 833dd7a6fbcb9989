"""Preference losses by hand on three tokens, their gradients, and what may not change them.

Run: python -m pytest tests/objectives/test_preference.py
"""

from functools import partial
from math import exp, log

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kd.objectives import preference
from kd.objectives.preference import response_logprobs
from kd.signals import PAIR, RESPONSE, domain, is_row_wise
from tests.objectives.alone import values_of
from tests.objectives.terms import OBJECTIVES

dpo, ipo, rso, apo_zero = map(values_of, (preference.dpo, preference.ipo, preference.rso, preference.apo_zero))
dpkd, dpkd_token, cpo = map(values_of, (preference.dpkd, preference.dpkd_token, preference.cpo))
simpo, orpo, slic = map(values_of, (preference.simpo, preference.orpo, preference.slic))
chosen_likelihood = values_of(preference.chosen_likelihood)

# Three ids. The first prompt has two positions, so that its loss rows begin at the third; the second row is padded.
# w: tokens of probability 1/2, 1/4, 1/2 -> log q(w) = -4 log 2, three tokens
# l: tokens of probability 1/4, 1/8      -> log q(l) = -5 log 2, two tokens
# r (or p), the other model: w 1/2, 1/2, 1/2 -> -3 log 2; l 1/2, 1/4 -> -3 log 2
# h = (-4 + 3) log 2 - (-5 + 3) log 2 = log 2
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)


def halvings(*powers: tuple[float, ...]) -> Tensor:
    return -log(2) * torch.tensor(powers, dtype=torch.float64)


STUDENT = halvings((0, 0, 1, 2, 1), (0, 0, 2, 3, 0))
OTHER = halvings((0, 0, 1, 1, 1), (0, 0, 1, 2, 0))

AGAINST = {"dpo": dpo, "smoothed dpo": partial(dpo, label_smoothing=0.1), "ipo": ipo, "rso": rso, "dpkd": dpkd}
AGAINST |= {
    "ipo of sums": partial(ipo, length_normalised=False),
    "dpkd of means": partial(dpkd, length_normalised=True),
}
ALONE = {"cpo": cpo, "simpo": simpo, "orpo": orpo, "slic": slic, "chosen": chosen_likelihood}


def called(loss, student=STUDENT, other=OTHER, mask=MASK, group_size=2):
    return loss(student, other, mask, group_size) if loss in AGAINST.values() else loss(student, mask, group_size)


pairwise = pytest.mark.parametrize("loss", [*AGAINST.values(), *ALONE.values()], ids=[*AGAINST, *ALONE])


# ---- values ----------------------------------------------------------------------------------------------------------


def test_log_probabilities_of_responses():
    assert response_logprobs(STUDENT, MASK).tolist() == pytest.approx([-4 * log(2), -5 * log(2)])
    means = response_logprobs(STUDENT, MASK, length_normalised=True)
    assert means.tolist() == pytest.approx([-4 / 3 * log(2), -5 / 2 * log(2)])
    assert response_logprobs(STUDENT, torch.zeros_like(MASK), length_normalised=True).tolist() == [0, 0]


def test_sums_are_made_in_float32():
    # 1000 tokens of -1 and one of -0.25: bfloat16 has 8 bits.
    long = torch.cat([-torch.ones(1, 1000), torch.tensor([[-0.25]])], 1).to(torch.bfloat16)
    assert response_logprobs(long, torch.ones(1, 1001, dtype=torch.bool)).item() == -1000.25


AGAINST_ANOTHER = {  # log sigma(log x) = log(x / (1 + x))
    # beta = 2: beta h = log 4, sigma = 4/5
    "dpo": (partial(dpo, beta=2.0), -log(4 / 5)),
    # 0.9 of log(5/4) and 0.1 of log 5
    "dpo, smoothed": (partial(dpo, beta=2.0, label_smoothing=0.1), 0.9 * log(5 / 4) + 0.1 * log(5)),
    "dpkd": (partial(dpkd, beta=2.0), -log(4 / 5)),
    # means: h = (-1/3) log 2 - (-2/2) log 2 = 2/3 log 2; beta = 3: log 4
    "dpkd, means": (partial(dpkd, beta=3.0, length_normalised=True), -log(4 / 5)),
    # tau = 1/2: (h - 1)^2
    "ipo, sums": (partial(ipo, tau=0.5, length_normalised=False), (log(2) - 1) ** 2),
    "ipo, means": (partial(ipo, tau=0.5), (2 / 3 * log(2) - 1) ** 2),
    "rso": (partial(rso, gamma=0.5), 1 - 0.5 * log(2)),
    "rso, beyond the hinge": (partial(rso, gamma=2.0), 0.0),
}
WITHOUT = {
    # log q(w) - log q(l) = log 2; beta = 2: log 4
    "cpo": (partial(cpo, beta=2.0), -log(4 / 5)),
    # means: -4/3 log 2 + 5/2 log 2 = 7/6 log 2; beta = 18/7: log 8; gamma = log 2 leaves log 4
    "simpo": (partial(simpo, beta=18 / 7, gamma=log(2)), -log(4 / 5)),
    "slic": (slic, 1 - log(2)),
    "slic, beyond the hinge": (partial(slic, delta=0.5), 0.0),
    "chosen, mean": (partial(chosen_likelihood, length_normalised=True), 4 / 3 * log(2)),
    "chosen, sum": (chosen_likelihood, 4 * log(2)),
}


@pytest.mark.parametrize(("loss", "expected"), AGAINST_ANOTHER.values(), ids=AGAINST_ANOTHER)
def test_values_against_another_model(loss, expected):
    assert loss(STUDENT, OTHER, MASK, 2).tolist() == pytest.approx([expected], abs=1e-15)


@pytest.mark.parametrize(("loss", "expected"), WITHOUT.values(), ids=WITHOUT)
def test_values_without_another_model(loss, expected):
    assert loss(STUDENT, MASK, 2).tolist() == pytest.approx([expected], abs=1e-15)


def test_odds():
    # Every token of w has probability 3/4 and of l 1/2, however many there are: odds 3 and 1, their ratio 3.
    # -log sigma(log 3) = -log(3/4)
    student = torch.tensor([[0, 0, 0.75, 0.75, 0.75], [0, 0, 0.5, 0.5, 0]], dtype=torch.float64).log()
    assert orpo(student, MASK, 2).item() == pytest.approx(-log(3 / 4))


@pytest.mark.parametrize("probability", [1e-30, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-5])
def test_odds_keep_their_digits_in_float32(probability):
    # log odds(w) against odds 1 of l: -log sigma(x) = log(1 + (1 - P)/P) = -log P, whatever the digits of 1 - P
    student = torch.tensor([[log(probability)], [log(0.5)]])
    value = orpo(student, torch.ones(2, 1, dtype=torch.bool), 2)
    # float32 knows log P of 1 - 1e-5 to 1e-12 only
    assert value.item() == pytest.approx(-log(probability), rel=1e-2 if probability > 0.99 else 1e-5)


def test_a_sure_response_has_finite_odds_and_gradient():
    student = torch.tensor([[0.0], [-200.0]], requires_grad=True)
    value = orpo(student, torch.ones(2, 1, dtype=torch.bool), 2)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_single_responses_are_desirable_by_their_reward():
    # z = log q/r = (-1, -2) log 2; beta = 1: sigma(z) = (1/3, 1/5)
    loss = partial(apo_zero, STUDENT, OTHER, MASK, beta=1.0)
    assert loss(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([2 / 3, 1 / 5])
    assert loss(torch.tensor([0.5, 0.75])).tolist() == pytest.approx([1 / 3, 4 / 5])  # the threshold itself is bad
    weighted = loss(torch.tensor([1.0, 0.0]), desirable_weight=3.0, undesirable_weight=0.5)
    assert weighted.tolist() == pytest.approx([2, 1 / 10])


# ---- DPKD at every token ---------------------------------------------------------------------------------------------


def test_the_token_form_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/8, 1/2, 3/8): w = 0, l = 1.
    # log q(w)/q(l) = -log 4, log p(w)/p(l) = log 2, h = -log 8; beta = 1: -log sigma(-log 8) = log 9
    # dL/dz_w = -sigma(log 8) = -8/9, dL/dz_l = 8/9, nothing at the third id
    teacher = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
    student = torch.tensor([[1 / 8, 1 / 2, 3 / 8]], dtype=torch.float64).log().requires_grad_()
    value = dpkd_token(student, teacher, beta=1.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.tolist() == pytest.approx([log(9)])
    assert gradient.squeeze(0).tolist() == pytest.approx([-8 / 9, 8 / 9, 0], abs=1e-15)


def test_the_token_form_learns_nothing_where_the_best_ids_agree():
    teacher = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64).requires_grad_()
    value = dpkd_token(student, teacher)
    assert value.tolist() == pytest.approx([log(2)])
    assert (torch.autograd.grad(value.sum(), student)[0] == 0).all()
    assert is_row_wise(dpkd_token)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [dpo, dpkd])
def test_dpo_at_equality(loss):
    # sigma(0) = 1/2: the gradient is -beta/2 at every token of w and beta/2 at every token of l
    student = STUDENT.clone().requires_grad_()
    value = loss(student, STUDENT, MASK, 2, beta=0.3)
    assert value.tolist() == pytest.approx([log(2)])
    (gradient,) = torch.autograd.grad(value.sum(), student)
    expected = 0.15 * torch.tensor([[0, 0, -1, -1, -1], [0, 0, 1, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_ipo_stops_at_its_margin_and_the_hinges_beyond_theirs():
    # h = log 2: tau = 1 / (2 log 2) is the minimum of the square
    for loss in (
        partial(ipo, tau=1 / (2 * log(2)), length_normalised=False),
        partial(rso, gamma=2.0),
        partial(slic, delta=0.5),
    ):
        student = STUDENT.clone().requires_grad_()
        arguments = (MASK, 2) if loss.func is slic else (OTHER, MASK, 2)
        (gradient,) = torch.autograd.grad(loss(student, *arguments).sum(), student)
        assert gradient.abs().max() <= 1e-14


@pytest.mark.parametrize("loss", [dpo, ipo, rso, dpkd, cpo, simpo, orpo, slic])
def test_the_preferred_response_rises_and_the_other_falls(loss):
    student = (STUDENT.flip(0) * MASK).requires_grad_()  # the wrong way round, so that no hinge is satisfied
    (gradient,) = torch.autograd.grad(called(loss, student).sum(), student)
    assert (gradient[0][MASK[0]] < 0).all()
    assert (gradient[1][MASK[1]] > 0).all()
    assert (gradient[~MASK] == 0).all()


# ---- invariances -----------------------------------------------------------------------------------------------------


@pairwise
def test_padding_amount_and_side_change_nothing(loss):
    expected = called(loss)
    for side in ((4, 0), (0, 4)):
        student, other = (torch.nn.functional.pad(x, side, value=-9.0) for x in (STUDENT, OTHER))
        mask = torch.nn.functional.pad(MASK, side)
        torch.testing.assert_close(called(loss, student, other, mask), expected, rtol=0, atol=1e-15)


@pairwise
def test_prompts_are_not_counted(loss):
    # Whatever stands where no label counts, and NaN too.
    student, other = (x.masked_fill(~MASK, torch.nan) for x in (STUDENT, OTHER))
    torch.testing.assert_close(called(loss, student, other), called(loss))


@pairwise
def test_pairs_are_independent(loss):
    generator = torch.Generator().manual_seed(0)
    student, other = (-torch.rand(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask, order = MASK.repeat(3, 1), torch.tensor([4, 5, 0, 1, 2, 3])
    values = called(loss, student, other, mask)
    permuted = called(loss, student[order], other[order], mask)
    torch.testing.assert_close(permuted, values[[2, 0, 1]])
    alone = [called(loss, student[i : i + 2], other[i : i + 2], MASK) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(alone), values)


@pytest.mark.parametrize("loss", [dpo, dpkd, cpo, orpo])
def test_a_swap_turns_the_margin_round(loss):
    # sigma(h) + sigma(-h) = 1
    plain, swapped = called(loss), called(loss, STUDENT.flip(0), OTHER.flip(0), MASK.flip(0))
    torch.testing.assert_close((-plain).exp() + (-swapped).exp(), torch.ones(1, dtype=torch.float64))


def test_length_alone_does_not_move_what_is_normalised():
    # The same token probabilities, twice as long: simpo, orpo and the normalised ipo stay; dpo and cpo grow.
    twice = torch.cat([STUDENT, STUDENT], 1), torch.cat([OTHER, OTHER], 1), torch.cat([MASK, MASK], 1)
    for loss in (simpo, orpo, ipo, AGAINST["dpkd of means"]):
        torch.testing.assert_close(called(loss, *twice), called(loss))
    for loss in (dpo, cpo):
        assert called(loss, *twice) < called(loss)


@pairwise
@pytest.mark.parametrize("group_size", [1, 3, 4])
def test_other_groups_are_refused(loss, group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size}: .*two responses"):
        called(loss, STUDENT.repeat(6, 1), OTHER.repeat(6, 1), MASK.repeat(6, 1), group_size)


def test_what_they_are_counted_over():
    assert {domain(loss) for loss in (dpo, ipo, rso, dpkd, cpo, simpo, orpo, slic, chosen_likelihood)} == {PAIR}
    assert domain(apo_zero) == RESPONSE


# ---- files -----------------------------------------------------------------------------------------------------------


def test_orpo_is_a_sum_of_two_terms():
    # w: every token 3/4, l: 1/2. SFT -log 3/4 + lambda (0.1) -log sigma(log 3 - log 1)
    terms = OmegaConf.load(OBJECTIVES / "orpo.yaml")
    student = torch.tensor([[0, 0, 0.75, 0.75, 0.75], [0, 0, 0.5, 0.5, 0]], dtype=torch.float64).log()
    likelihood = chosen_likelihood(student, MASK, 2, length_normalised=terms.orpo_chosen.loss.length_normalised)
    total = terms.orpo_chosen.weight * likelihood + terms.orpo.weight * orpo(student, MASK, 2)
    assert total.item() == pytest.approx(1.1 * -log(0.75))
    assert exp(-total.item() / 1.1) == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["ddpo", "spin"])
def test_what_differs_in_the_pairs_alone_has_the_loss_of_dpo(name):
    file = OmegaConf.load(OBJECTIVES / f"{name}.yaml")[name]
    assert file.loss == OmegaConf.load(OBJECTIVES / "dpo.yaml").dpo.loss
