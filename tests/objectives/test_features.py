"""Hidden states compared: by hand, in the limit, across widths, and whatever the padding."""

import math
from functools import partial

import pytest
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor

from kd.composition.check import check
from kd.experiment.build import build
from kd.experiment.export import export_objective
from kd.objectives.features import (
    HiddenCosine,
    HiddenCrossEntropy,
    HiddenL1,
    HiddenMMD,
    HiddenMSE,
    HiddenStates,
    PatientKD,
    mean_squared_distance,
    squared_mmd_linear,
    squared_mmd_rbf,
)
from kd.objectives.layers import LayerMatch, block_pairs, layer_pairs
from kd.signals import domain, is_row_wise
from kd.types import Shape
from tests.runs import EXACT, config, gradients, train

STATES = {"mse": HiddenMSE, "l1": HiddenL1, "cosine": HiddenCosine, "ce": HiddenCrossEntropy, "pkd": PatientKD}
ZERO_AT_EQUALITY = ("mse", "l1", "cosine", "pkd")
MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def states(width: int, layers: int = 2, seed: int = 0, shape: tuple[int, int] = (2, 5)) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, width, generator=generator, dtype=torch.float64) for _ in range(layers + 1))


def sized(term, student: int = 4, teacher: int = 4, depth: int = 2, teacher_depth: int = 2):
    torch.manual_seed(0)
    term.sized_for(Shape(student, depth), Shape(teacher, teacher_depth))
    return term.double()


def alone(term: HiddenStates, h: list[float], g: list[float]) -> float:
    """The value of one position."""
    h, g = (tuple(torch.tensor([[x]], dtype=torch.float64) for _ in range(3)) for x in (h, g))
    yes = torch.ones(1, 1, dtype=torch.bool)
    return sized(term, 2, 2)(h, g, yes, yes).item()


# --- by hand ---


def test_by_hand():
    h, g = [3.0, 4.0], [1.0, 0.0]
    assert alone(HiddenMSE(), h, g) == pytest.approx((2**2 + 4**2) / 2)
    assert alone(HiddenL1(), h, g) == pytest.approx((2 + 4) / 2)
    assert alone(HiddenCosine(), h, g) == pytest.approx(1 - 3 / 5)
    assert alone(PatientKD(layers="last"), h, g) == pytest.approx((3 / 5 - 1) ** 2 + (4 / 5) ** 2)
    # softmax(1, 0) = (e, 1)/(e + 1); log softmax(3, 4) = (-1, 0) - log(1 + 1/e)
    p, normaliser = math.e / (math.e + 1), math.log(1 + 1 / math.e)
    assert alone(HiddenCrossEntropy(), h, g) == pytest.approx(p * (1 + normaliser) + (1 - p) * normaliser)


def test_values_stand_where_the_response_is_predicted():
    h, g = states(4), states(4, seed=1)
    values = sized(HiddenMSE())(h, g, MASK, REAL)
    expected = (h[-1] - g[-1]).square().mean(-1)
    torch.testing.assert_close(values[MASK], expected[MASK])
    everywhere = sized(HiddenMSE(positions="all"))(h, g, MASK, REAL)
    for b in range(2):
        torch.testing.assert_close(everywhere[b], expected[b][REAL[b]].mean().expand(5))


def test_pairs_are_summed():
    h, g = states(4), states(4, 4, seed=1)
    both = sized(HiddenMSE(layers=[[0, 0], [1, 3]]), teacher_depth=4)(h, g, MASK, REAL)
    each = [sized(HiddenMSE(layers=[pair]), teacher_depth=4)(h, g, MASK, REAL) for pair in ([0, 0], [1, 3])]
    torch.testing.assert_close(both, each[0] + each[1])
    torch.testing.assert_close(each[1][MASK], (h[1] - g[3]).square().mean(-1)[MASK])


# --- invariances ---


@pytest.mark.parametrize("name", STATES)
def test_equal_states_are_at_the_least_value(name):
    h = states(4)
    term = sized(STATES[name](layers="uniform"))
    leaves = tuple(x.clone().requires_grad_() for x in h)
    values = term(leaves, h, MASK, REAL)
    gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    if name != "l1":  # which has a corner there
        assert all(g is None or g.abs().max() < 1e-12 for g in gradients)
    if name in ZERO_AT_EQUALITY:
        assert values.abs().max() < 1e-12
    nearby = tuple(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) for x in h)
    assert (term(nearby, h, MASK, REAL)[MASK] > values[MASK]).all()


@pytest.mark.parametrize("name", ["cosine", "pkd"])
def test_directions_have_no_length(name):
    h, g, term = states(4), states(4, seed=1), sized(STATES[name](layers="last"))
    scaled = term(tuple(3 * x for x in h), tuple(0.2 * x for x in g), MASK, REAL)
    torch.testing.assert_close(scaled, term(h, g, MASK, REAL))


@pytest.mark.parametrize("positions", ["response", "all"])
@pytest.mark.parametrize("name", [*STATES, "linear", "rbf"])
def test_padding_and_its_side_change_nothing(name, positions):
    make = STATES.get(name) or partial(HiddenMMD, kernel=name)
    term = sized(make(positions=positions, layers="uniform"), 4, 6)
    h, g = states(4), states(6, seed=1)

    def moved(x: Tensor, fill: float) -> Tensor:
        """The first sequence's tokens at the right end of a wider row."""
        out = torch.full((2, 9, *x.shape[2:]), fill, dtype=x.dtype)
        out[0, 6:], out[1, 4:] = x[0, :3], x[1]
        return out

    given = term(h, g, MASK, REAL)
    wide = [tuple(moved(x, math.nan) for x in layers) for layers in (h, g)]
    mask, real = moved(MASK, False), moved(REAL, False)
    padded = term(*wide, mask, real)
    if domain(term) == "B T":
        given, padded = given[MASK], padded[mask]
    torch.testing.assert_close(padded, given)


@pytest.mark.parametrize("name", [*STATES, "linear", "rbf"])
def test_only_what_is_compared_matters(name):
    make = STATES.get(name) or partial(HiddenMMD, kernel=name)
    term, h, g = sized(make(layers="last")), states(4), states(4, seed=1)
    spoilt = tuple(x.masked_fill(~MASK[..., None], math.inf) for x in h)
    leaves = tuple(x.requires_grad_() for x in spoilt)
    values = term(leaves, g, MASK, REAL)
    torch.testing.assert_close(values, term(h, g, MASK, REAL))
    (gradient,) = torch.autograd.grad(values.sum(), leaves[-1:])
    assert (gradient[~MASK] == 0).all()
    assert gradient[MASK].isfinite().all()


def test_half_precision_is_compared_in_float32():
    h, g = (tuple(x.bfloat16() for x in layers) for layers in (states(400), states(400, seed=1)))
    term = HiddenMSE()
    term.sized_for(Shape(400, 2), Shape(400, 2))
    values = term(h, g, MASK, REAL)
    assert values.dtype == torch.float32
    exact = (h[-1].double() - g[-1].double()).square().mean(-1)
    torch.testing.assert_close(values[MASK].double(), exact[MASK], rtol=1e-5, atol=0)


# --- gradients ---


@pytest.mark.parametrize("name", [*STATES, "linear", "rbf"])
def test_gradients_are_finite_differences(name):
    make = STATES.get(name) or partial(HiddenMMD, kernel=name, bandwidth=1.5)
    term = sized(make(layers="uniform", projection="linear"), 3, 4)
    g = states(4, seed=1)
    leaves = tuple(x.requires_grad_() for x in states(3)[1:])

    def of(*given: Tensor) -> Tensor:
        return term((torch.zeros(2, 5, 3, dtype=torch.float64), *given), g, MASK, REAL)

    assert torch.autograd.gradcheck(of, leaves, fast_mode=True)


def test_projections_learn():
    term = sized(HiddenMSE(), 3, 4)
    h, g = states(3), states(4, seed=1)
    (weight,) = term.parameters()
    torch.testing.assert_close(term(h, g, MASK, REAL)[MASK], (h[-1] @ weight.T - g[-1]).square().mean(-1)[MASK])

    def of(w: Tensor) -> Tensor:
        return torch.func.functional_call(term, {"match.projections.0.weight": w}, (h, g, MASK, REAL))

    assert torch.autograd.gradcheck(of, (weight.detach().requires_grad_(),))


# --- widths and layers ---


def test_a_projection_is_there_when_widths_differ_or_when_requested():
    assert [tuple(p.shape) for p in sized(HiddenMSE(layers="uniform"), 3, 5).parameters()] == [(5, 3), (5, 3)]
    assert not list(sized(HiddenMSE(), 4, 4).parameters())
    assert [tuple(p.shape) for p in sized(HiddenMSE(projection="linear"), 4, 4).parameters()] == [(4, 4)]


def test_two_widths_without_a_projection_are_refused():
    with pytest.raises(ValueError, match="the student's are 3 and the teacher's 5 wide; set projection=auto"):
        sized(HiddenMSE(projection="none"), 3, 5)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("last", 6, 12, [(6, 12)]),
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),  # the PKD paper: {2, 4, 6, 8, 10}
        ("tail", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),  # and {7, 8, 9, 10, 11}
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),  # TinyBERT: g(m) = 3 m
        ("uniform", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("uniform", 4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),  # 1.5 -> 2, 3, 4.5 -> 5, 6
        ("uniform", 4, 1, [(1, 1), (2, 1), (3, 1), (4, 1)]),  # never the embeddings
        ([[0, 0], [2, 4]], 2, 4, [(0, 0), (2, 4)]),
    ],
)
def test_layer_maps(layers, student, teacher, expected):
    assert layer_pairs(layers, student, teacher) == expected


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([[3, 1]], "the student has no layer 3; it has 0 .embeddings. to 2 .last."),
        ([[1, -1]], "the teacher has no layer -1"),
        ([[1]], "give pairs"),
        ([], "give pairs"),
        ("tail", "needs a teacher of at least the student's 2 layers, not 1"),
    ],
)
def test_a_map_that_leads_nowhere_is_refused(layers, sentence):
    with pytest.raises(ValueError, match=sentence):
        layer_pairs(layers, 2, 1)


def test_a_student_of_one_layer_has_nothing_between():
    with pytest.raises(ValueError, match="take layers=last"):
        layer_pairs("skip", 1, 4)


def test_attention_has_no_layer_of_embeddings():
    assert block_pairs([[1, 2], [2, 4]], 2, 4) == [(0, 1), (1, 3)]
    with pytest.raises(ValueError, match="names layer 0, the embeddings"):
        block_pairs([[0, 0]], 2, 4)


def test_a_learned_map_begins_even_and_learns_which_is_nearest():
    h = states(4)
    far, near = torch.full_like(h[1], 5.0), h[2]
    teacher = (torch.zeros_like(far), far, near, far)
    match = LayerMatch(Shape(4, 2), Shape(4, 3), layers="learned", projection="auto").double()
    assert tuple(match.mixture.shape) == (2, 3)  # the embeddings mix with nothing
    pairs = match(h, teacher, MASK)
    torch.testing.assert_close(pairs[0][1], ((far + near + far) / 3)[MASK])
    torch.testing.assert_close(pairs[1][0], h[2][MASK])
    (pairs[1][0] - pairs[1][1]).square().sum().backward()
    gradient = match.mixture.grad
    assert (gradient[0] == 0).all()
    assert gradient[1, 1] < 0 < gradient[1, 0]  # descent moves weight to the near layer
    match.mixture.data = torch.tensor([[0, 0, 0], [0, 50, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(match(h, teacher, MASK)[1][1], near[MASK])


def test_terms_over_layers_are_not_row_wise():
    for make in (*STATES.values(), HiddenMMD):
        assert not is_row_wise(make())


# --- MMD ---


def test_mmd_by_hand():
    x, y = torch.tensor([[0.0], [2.0]], dtype=torch.float64), torch.tensor([[0.0]], dtype=torch.float64)
    # k(0, 0) = 1, k(0, 2) = exp(-4/2) at bandwidth 1: (2 + 2 e^-2)/4 + 1 - 2 (1 + e^-2)/2
    near = math.exp(-2)
    assert squared_mmd_rbf(x, y, bandwidth=1.0).item() == pytest.approx((2 + 2 * near) / 4 + 1 - (1 + near))
    assert squared_mmd_linear(x, y).item() == pytest.approx(1.0)
    assert mean_squared_distance(x).item() == pytest.approx(2.0)  # 0, 4, 4, 0


@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_mmd_of_sets(bandwidth):
    x, y = states(3, shape=(1, 40))[0][0], states(3, seed=1, shape=(1, 30))[0][0]
    value = squared_mmd_rbf(x, y, bandwidth=bandwidth)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(squared_mmd_rbf(x[order], y, bandwidth=bandwidth), value)
    assert abs(squared_mmd_rbf(x, x[order], bandwidth=bandwidth).item()) < 1e-14
    assert squared_mmd_rbf(x, x, bandwidth=bandwidth).item() == 0
    assert value.item() > 1e-3
    torch.testing.assert_close(squared_mmd_rbf(x + 7, y + 7, bandwidth=bandwidth), value)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_mmd_in_chunks_is_the_whole(rows):
    x, y = states(3, shape=(1, 40))[0][0].requires_grad_(), states(3, seed=1, shape=(1, 30))[0][0]
    distances = torch.cdist(torch.cat([x, y]), torch.cat([x, y])).square()
    kernel = (-distances / 2).exp()
    expected = kernel[:40, :40].mean() + kernel[40:, 40:].mean() - 2 * kernel[:40, 40:].mean()
    value = squared_mmd_rbf(x, y, bandwidth=1.0, rows=rows)
    torch.testing.assert_close(value, expected)
    mine, theirs = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(mine, theirs)


def test_mmd_is_a_value_of_each_response():
    h, g, term = states(4), states(4, seed=1), sized(HiddenMMD(bandwidth=1.0))
    values = term(h, g, MASK, REAL)
    expected = [squared_mmd_rbf(h[-1][b][MASK[b]], g[-1][b][MASK[b]], bandwidth=1.0) for b in range(2)]
    torch.testing.assert_close(values, torch.stack(expected))
    nothing = MASK.clone()
    nothing[0] = False
    assert term(h, g, nothing, REAL)[0] == 0


def test_mmd_of_a_common_offset_keeps_its_digits():
    x, y = (states(3, seed=s, shape=(1, 20))[0][0] for s in (0, 1))
    exact = squared_mmd_rbf(x, y)
    shifted = squared_mmd_rbf((x + 1000).float(), (y + 1000).float())
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-3, atol=0)


def test_mmd_under_autocast_keeps_its_digits():
    x, y = (states(3, seed=s, shape=(1, 20))[0][0].float() for s in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_mmd_rbf(x, y)
    torch.testing.assert_close(found, squared_mmd_rbf(x, y), rtol=1e-6, atol=0)


# --- in a run ---


def pooled(student_hidden: tuple[Float[Tensor, "B T D"], ...], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "*n"]:
    return student_hidden[-1].mean(-1)[mask]


def fused(student_logprobs: Float[Tensor, "*n"], student_qkv: tuple[tuple[Tensor, ...], ...]) -> Float[Tensor, "*n"]:
    return student_logprobs


def test_layers_in_a_tuple_are_no_rows():
    assert not is_row_wise(pooled)
    assert not is_row_wise(fused)


def test_positions_have_to_be_the_same():
    with pytest.raises(ValueError, match=r"hidden_mse needs teacher_hidden, but alignment Unaligned provides"):
        check(config("objective=hidden_mse", "alignment=none"))
    check(config("objective=hidden_mse"))


@pytest.mark.parametrize("layers", ["middle", "3", "learned"])
def test_a_map_that_is_none_is_refused_before_anything_is_loaded(layers):
    with pytest.raises(ValueError, match=r"objective\.rkd\.loss\.layers"):
        check(config("objective=rkd", f"objective.rkd.loss.layers={layers}"))


WIDER = ["teacher.model.architecture.hidden_size=32", "teacher.model.architecture.num_hidden_layers=2"]


def test_a_run_sizes_trains_and_keeps_projections(tmp_path):
    cfg = config("objective=hidden_mse", *WIDER, "objective.hidden_mse.lr=0.5", "optim.steps=4", "checkpoint.every=4")
    before = build(cfg).module.stateful.state_dict()
    parts = train(cfg, tmp_path)
    name = "hidden_mse.match.projections.0.weight"
    after = parts.module.stateful.state_dict()[name]
    assert after.shape == (32, 16)
    assert (after - before[name]).abs().max() > 0.1  # at a rate of its own
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved[f"stateful.{name}"], after)
    assert not any("projections" in key for key in parts.module.student.state_dict())
    export_objective(parts.module.stateful, tmp_path / "objective.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "objective.safetensors")[name], after)


def test_a_run_states_both_widths(tmp_path):
    with pytest.raises(ValueError, match="the student's are 16 and the teacher's 32 wide"):
        build(config("objective=hidden_mse", *WIDER, "objective.hidden_mse.loss.projection=none"))


def test_nothing_is_written_for_a_term_without_state(tmp_path):
    export_objective(torch.nn.ModuleDict({"mse": sized(HiddenMSE())}), tmp_path / "objective.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["hidden_mmd", "tinybert", "attention_kl", "minilm2", "ted", "rkd"])
def test_splitting_a_window_changes_nothing(name, tmp_path):
    """Values do not depend on which sequences share a micro-batch."""
    words = [f"objective={name}", "optim.steps=1", "checkpoint.every=1"]
    words += ["objective.ted.loss.stage_one=0.0"] if name == "ted" else []
    words += ["objective.minilm2.loss.relation_heads=4"] if name == "minilm2" else []
    many, one = (
        gradients(train(config(*EXACT, *words, f"data.max_tokens={n}"), tmp_path / str(n))) for n in (64, 4096)
    )
    assert many.keys() == one.keys()
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-6
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-6, atol=1e-9)
