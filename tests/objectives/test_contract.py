"""What every term of `conf/objective/*.yaml` promises, whoever adds it.

Run: python -m pytest tests/objectives/test_contract.py
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kd.kernels.chunks import slices
from kd.objectives.reduction import Counts, reduce
from kd.signals import FROM_ALIGNMENT, PAIR, POSITION, RESPONSE, ROW, SIGNALS, domain, of_role, requires
from tests.objectives.alone import values_of
from tests.objectives.terms import (
    DIVERGENCES,
    OBJECTIVES,
    ROW_WISE,
    TERMS,
    VOCABULARY_TERMS,
    Term,
    World,
    evaluate,
    in_precision,
    over,
    read,
    world,
)

ANYONE_ELSE = ("teacher", "native_teacher", "reference")
EXCLUDED = 7  # an id that no label is
WHO_EXCLUDES = {"nobody": (), "teacher": ANYONE_ELSE, "student": ("student",), "both": ("student", *ANYONE_ELSE)}
MASKED = [  # what an alignment says goes by the mask, and here all positions are aligned
    term
    for term in TERMS
    if domain(term.loss) in (POSITION, RESPONSE, PAIR) and not FROM_ALIGNMENT & requires(term.loss)
]


def assert_same(term: Term, left: World, right: World, tolerance: float = 1e-10) -> None:
    """Same values and, where the logits have the same shape, the same gradients."""
    (a, da), (b, db) = evaluate(term, left), evaluate(term, right)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for name in da:
        if da[name].shape == db[name].shape:
            torch.testing.assert_close(da[name], db[name], rtol=tolerance, atol=tolerance)


def exclude(given: World, *roles: str) -> World:
    """The same world where `roles` give the id `EXCLUDED` a logit of -inf."""
    return (
        given.map_logits(lambda z: z.index_fill(-1, torch.tensor([EXCLUDED]), -torch.inf), *roles) if roles else given
    )


@pytest.mark.parametrize("path", sorted(OBJECTIVES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_file_states_terms_with_a_weight_and_a_kind(path):
    for term in read(path):
        assert isinstance(term.weight, float)
        assert term.kind


def test_existence_is_enough():
    assert {"sft-sft", "fkl-fkl", "rkl-rkl", "jsd-jsd", "tvd-tvd"} <= {term.name for term in TERMS}


@over(TERMS)
def test_requires_known_signals_only(term):
    assert requires(term.loss) <= SIGNALS
    assert requires(term.loss)


@over(TERMS)
def test_returns_one_value_for_each_element_of_its_domain(term):
    values, _ = evaluate(term, world(batch=4, length=3))
    expected = {ROW: (12,), POSITION: (4, 3), RESPONSE: (4,), PAIR: (2,)}
    assert values.shape == expected[domain(term.loss)]


@pytest.mark.parametrize("who", WHO_EXCLUDES)
@pytest.mark.parametrize("factor", [1, 60, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@over(VOCABULARY_TERMS)
def test_saturated_and_excluded_logits_are_finite(term, dtype, factor, who):
    saturated = world(vocabulary=50).map_logits(lambda z: factor * z).to(dtype)
    values, gradients = evaluate(term, exclude(saturated, *WHO_EXCLUDES[who]))
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@over(VOCABULARY_TERMS)
def test_bf16_logits_are_upcast(term):
    # Sums over 50k probabilities rounded to 8 bits would be off by several times a divergence of 5e-4 nats. The rounded
    # logits themselves are what float64 sees too.
    given = world(batch=2, length=2, vocabulary=50_000)
    nearby = {role: given.logits["teacher"] + 0.015 * z for role, z in given.logits.items()}
    rounded = replace(given, logits={**nearby, "teacher": given.logits["teacher"]}).to(torch.bfloat16)
    values, gradients = evaluate(term, rounded)
    exact, exact_gradients = evaluate(term, rounded.to(torch.float64))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-3, atol=0)
    error = (gradients["logits"].double() - exact_gradients["logits"]).norm()
    assert error <= 1e-2 * exact_gradients["logits"].norm()  # a gradient comes back in bf16


@over(VOCABULARY_TERMS)
def test_vocabulary_rows_without_a_token_change_nothing(term):
    given = world(vocabulary=17)
    padded = given.map_logits(lambda z: nn.functional.pad(z, (0, 5), value=-torch.inf))
    (values, gradients), (same, wider) = evaluate(term, given), evaluate(term, padded)
    torch.testing.assert_close(values, same, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients["logits"], wider["logits"][..., :17], rtol=1e-12, atol=1e-12)
    assert (wider["logits"][..., 17:] == 0).all()


@over(VOCABULARY_TERMS)
def test_a_constant_added_to_logits_changes_nothing(term):
    given = world()
    shifted = given.map_logits(lambda z: z + 7.5, "student").map_logits(lambda z: z - 40.0, *ANYONE_ELSE)
    assert_same(term, given, shifted)


@over(VOCABULARY_TERMS)
def test_renaming_the_ids_changes_nothing(term):
    given = world(vocabulary=17)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    renamed = given.map_logits(lambda z: z[..., order])
    renamed = replace(renamed, labels=order.argsort()[given.labels], boundary=given.boundary[order])
    (values, gradients), (same, permuted) = evaluate(term, given), evaluate(term, renamed)
    torch.testing.assert_close(values, same, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients["logits"][..., order], permuted["logits"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "vocabulary", "tolerance"), [(torch.float64, 17, 1e-13), (torch.float32, 20_000, 1e-6)], ids=str
)
@over(DIVERGENCES)
def test_a_divergence_and_its_gradient_are_zero_at_equality(term, dtype, vocabulary, tolerance):
    values, gradients = evaluate(term, world(vocabulary=vocabulary).to(dtype).with_all_equal())
    assert values.abs().max() <= tolerance
    assert all(gradient.abs().max() <= tolerance for gradient in gradients.values())


@pytest.mark.parametrize("who", WHO_EXCLUDES)
@pytest.mark.parametrize("factor", [0.001, 1, 60])
@over(DIVERGENCES)
def test_a_divergence_is_not_negative(term, factor, who):
    given = exclude(world().map_logits(lambda z: factor * z), *WHO_EXCLUDES[who])
    assert evaluate(term, given)[0].min() >= -1e-14
    assert evaluate(term, given.to(torch.float32))[0].min() >= -1e-6


@over(DIVERGENCES)
def test_a_divergence_is_positive_elsewhere(term):
    values, _ = evaluate(term, world())
    positive = values > 1e-3
    if "divergence" in getattr(term.loss, "keywords", {}):  # of some tokens (kd/objectives/selective.py): 0 at others
        positive = positive[values != 0]
        assert len(positive) > 0, "nothing is selected in this world"
    assert positive.all()


@over(TERMS)
def test_only_the_student_learns(term):
    given = world()
    values = term.values(**given.signals(term.loss))
    own = [p for p in term.loss.parameters() if p.requires_grad] if isinstance(term.loss, nn.Module) else []
    assert values.requires_grad == bool(own)  # all models frozen: nothing but the term's own parameters to learn
    _, gradients = evaluate(term, given)
    learns = any(gradient.abs().max() > 0 for gradient in gradients.values())
    assert learns == bool(of_role("student", requires(term.loss)))  # a term that reads nothing of it: for its own sake
    assert learns or own


@over(MASKED)
def test_nothing_is_learnt_from_a_group_without_a_loss_token(term):
    """And its values, whatever they are, do not spoil the others' gradient."""
    given, silent = world(), slice(0, 2)
    mask = torch.ones_like(given.labels, dtype=torch.bool)
    mask[silent] = False
    counts = Counts(tokens=6.0, responses=2.0, groups=1.0)

    def mean(values: Tensor) -> Tensor:
        return reduce(values, mask, counts, domain=domain(term.loss))

    values, gradients = evaluate(term, replace(given, mask=mask), mean)
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert (gradients.pop("logits")[silent] == 0).all()
    assert all((gradient[:, silent] == 0).all() for name, gradient in gradients.items() if name == "hidden")


@over(MASKED)
def test_a_batch_without_a_loss_token_moves_nothing(term):
    given = replace(world(), mask=torch.zeros(4, 3, dtype=torch.bool))
    own = [p for p in term.loss.parameters() if p.requires_grad] if isinstance(term.loss, nn.Module) else []
    found: list[Tensor] = []

    def mean(values: Tensor) -> Tensor:
        result = reduce(values, given.mask, Counts(0.0, 0.0, 0.0), domain=domain(term.loss))
        assert result.item() == 0
        found.extend(torch.autograd.grad(result, own, retain_graph=True, materialize_grads=True) if own else [])
        return result

    _, gradients = evaluate(term, given, mean)
    assert all((gradient == 0).all() for gradient in (*gradients.values(), *found))


@over(TERMS)
def test_evaluation_leaves_no_trace(term):
    state = copy.deepcopy(term.loss.state_dict()) if isinstance(term.loss, nn.Module) else {}
    given = world()
    assert_same(term, given, given, tolerance=0.0)
    for name, value in state.items():
        torch.testing.assert_close(term.loss.state_dict()[name], value, rtol=0, atol=0)


def _take(signals: dict, rows: Tensor | slice) -> dict:
    return {name: value[rows] if isinstance(value, Tensor) else value for name, value in signals.items()}


@over(ROW_WISE)
def test_permuted_rows_give_permuted_values(term):
    signals = world().signals(term.loss)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        term.values(**_take(signals, order)), term.values(**signals)[order], rtol=1e-12, atol=1e-12
    )


@over(ROW_WISE)
def test_split_rows_give_split_values(term):
    signals = world().signals(term.loss)
    pieces = [term.values(**_take(signals, rows)) for rows in slices(12, 5)]
    torch.testing.assert_close(torch.cat(pieces), term.values(**signals), rtol=1e-12, atol=1e-12)


@over(ROW_WISE)
def test_rows_may_lie_in_a_grid(term):
    given = world()
    grid = {name: given.at_positions(given.signal(name)) for name in requires(term.loss)}
    flat = term.values(**given.signals(term.loss))
    torch.testing.assert_close(term.values(**grid).flatten(), flat, rtol=1e-12, atol=1e-12)


@over(TERMS)
@pytest.mark.parametrize(
    ("student", "others"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float64", "float32")]
)
def test_models_may_be_of_two_precisions(term, student, others):
    """Under 32-true with student.model.dtype=bfloat16, and under 64-true. A term's own weights are as the trainer's."""
    types = {True: getattr(torch, student), False: getattr(torch, others)}
    own = torch.promote_types(types[True], torch.float32)
    loss = copy.deepcopy(term.loss).to(own) if isinstance(term.loss, nn.Module) else term.loss
    signals = world().signals(term.loss)
    given = {name: in_precision(signal, types[name.startswith("student_")]) for name, signal in signals.items()}
    same = {
        name: in_precision(signal, torch.float64) for name, signal in given.items()
    }  # rounded, and compared exactly
    torch.testing.assert_close(values_of(loss)(**given).double(), term.values(**same), rtol=1e-2, atol=1e-2)
