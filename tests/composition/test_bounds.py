"""Numbers, shapes and interpolations that make no run are refused in one sentence that names key, value and bound.

Run: python -m pytest tests/composition/test_bounds.py
"""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from kd.components.choices import CONF
from kd.composition.check import check, check_overrides
from kd.experiment.compatibility import check_models

TINY = ["teacher=tiny", "student=tiny", "skill=spell_backward", "trainer=cpu"]
STUDENT = "student.model.architecture"
WRITTEN = ["rollout=on_policy", "objective=reinforce", "reward=verifier"]
RANKED = ["rollout=ranked", "reward=verifier", "objective=dpo", "compare=null"]


@pytest.fixture(autouse=True)
def _hydra():
    GlobalHydra.instance().clear()


def refusal(*overrides: str) -> str:
    """The sentence; its key and value are those of the last override."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as raised:
        accepted(*overrides)
    return str(raised.value)


def accepted(*overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*TINY, *overrides])
    check(cfg)
    check_models(cfg)


OUT_OF_BOUNDS = [
    (["seed=9223372036854775808"], "less than"),
    (["optim.steps=10000000000"], "between 1 and 1000000000"),
    (["optim.window=10000000"], "between 1 and 1048576"),
    (["optim.lr=100"], "between 1e-12 and 10"),
    (["optim.lr=0"], "between 1e-12 and 10"),
    (["optim.weight_decay=-0.1"], "between 0 and 10"),
    (["optim.beta2=1"], "≥ 0 and < 1"),
    (["optim.clip=0"], "between 1e-06"),
    (["data.max_length=100000000"], "between 1 and"),
    (["data.workers=5000"], "between 0 and 256"),
    (["temperature=0"], "between 1e-06"),
    (["teacher.prepare.lr=100"], "between 1e-12 and 10"),
    (["teacher.prepare.window=10000000"], "between 1 and 1048576"),
    ([*WRITTEN, "rollout.samples=100000"], "between 1 and 4096"),
    ([*WRITTEN, "rollout.max_new_tokens=10000000"], "between 1 and 1048576"),
    ([*WRITTEN, "rollout.batch_size=1000000"], "between 1 and 65536"),
    ([*RANKED, "rollout.writer.samples=100000"], "between 1 and 4096"),
    (["objective.fkl.weight=1e7"], "between 0, which leaves the term out, and 1e+06"),
    (["objective.fkl.weight=-1"], "a negative weight makes the term grow instead of fall"),
    (["objective.fkl.loss.temperature=1e9"], "between 1e-06"),
    (["objective=rkd", "objective.rkd.loss.distance=nan"], "finite"),
    (["objective=rkd", "objective.rkd.loss.distance=1e-40"], "float32"),
    ([f"{STUDENT}.num_attention_heads=0"], "between 1 and"),
    ([f"{STUDENT}.num_hidden_layers=-1"], "between 1 and"),
    ([f"{STUDENT}.hidden_size=1000000000"], "between 1 and"),
    ([f"{STUDENT}.num_key_value_heads=3"], "does not divide num_attention_heads=4"),
    ([f"{STUDENT}.num_attention_heads=3"], "multiple"),
    (["data.max_length=513"], "512 positions of the student"),
    ([f"{STUDENT}.max_position_embeddings=300"], "300 positions of the student"),
    (["teacher.model.architecture.max_position_embeddings=300"], "300 positions of the teacher"),
    (["teacher.licence=-1"], "licence"),
    (["+student.licence=-1"], "string"),
    ([*RANKED, "rollout.margin=2"], "differ by 1 at most"),
    ([*RANKED, "rollout.margin=1"], "differ by 1 at most"),
]


@pytest.mark.parametrize(("overrides", "bound"), OUT_OF_BOUNDS, ids=[" ".join(o) for o, _ in OUT_OF_BOUNDS])
def test_what_is_out_of_bounds_is_refused_by_its_key_value_and_bound(overrides, bound):
    sentence = refusal(*overrides)
    assert bound in sentence
    assert (
        overrides[-1].lstrip("+").split("=")[0].rpartition(".")[2] in sentence
        or bound == "multiple"
        or "positions" in bound
    )


def test_a_margin_below_the_largest_difference_and_any_of_an_unbounded_reward_are_runs():
    accepted(*RANKED, "rollout.margin=0.5")
    accepted("rollout=ranked", "reward=teacher_score", "objective=dpo", "compare=null", "rollout.margin=2")


INTERPOLATIONS = {
    "optim.lr=${nope}": "no nope",
    "optim.lr=${optim.lrr}": "did you mean ${optim.lr}?",
    "optim.lr=${oc.env:KD_NOT_SET}": "KD_NOT_SET is not set",
    "run.root=${oc.env:KD_NOT_SET}/x": "KD_NOT_SET is not set",
    "optim.lr=${optim.lr}": "leads back to itself",
    "optim.lr=${nosuch:1}": "no resolver nosuch",
    "omits=[${a.b}]": "no a.b",
    "objective.fkl={weight:${zz}}": "no zz",
    "name=${.nope}": "no nope",
}


@pytest.mark.parametrize("override", INTERPOLATIONS)
def test_an_interpolation_that_leads_nowhere_is_named(override):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as raised:
        check_overrides([*TINY, override])
    assert str(raised.value).startswith(f"{override}: ")
    assert INTERPOLATIONS[override] in str(raised.value)


def test_an_interpolation_that_leads_somewhere_is_taken():
    check_overrides([*TINY, "optim.lr=${optim.warmup}", "name=${oc.env:KD_NOT_SET,fallback}"])
