"""Terms whose weight changes in the run, that are silent for a part of it, or that learn on some responses alone.

Run: python -m pytest tests/composition/test_terms.py
"""

import re
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from kd.composition.check import check, describe
from kd.experiment.build import build, fit
from kd.kernels.logits import label_logprobs
from kd.objectives.divergence import cross_entropy, forward_kl
from kd.objectives.reduction import Counts, count
from kd.training.observation import moved
from kd.types import Progress
from tests import runs

LATER = {"start": 0.0, "end": 1.0, "begin": 0.5, "until": 0.5}
SOONER = {"start": 1.0, "end": 0.0, "begin": 0.5, "until": 0.5}
MOVING = {  # row-wise, of positions, of responses
    "sft": runs.term(cross_entropy, 0.3),
    "fkl": runs.term(forward_kl, {"start": 0.5, "end": 0.1}),
    "crowded": runs.term(runs.crowded_cross_entropy, {"start": 8.0, "end": 0.5, "shape": "exponential"}),
    "squared": runs.term(runs.squared_surprise, LATER),
}
BY_HAND = [  # in four steps
    {"sft": 0.3, "fkl": 0.5, "crowded": 8.0, "squared": 0.0},
    {"sft": 0.3, "fkl": 0.4, "crowded": 4.0, "squared": 0.0},
    {"sft": 0.3, "fkl": 0.3, "crowded": 2.0, "squared": 1.0},
    {"sft": 0.3, "fkl": 0.2, "crowded": 1.0, "squared": 1.0},
]
FOUR = [*runs.EXACT, "optim.steps=4", "optim.clip=null", "log_every=1"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A run of four steps: its folder, and for each step weights of the student, micro-batches and gradient."""
    path, seen = tmp_path_factory.mktemp("moving"), []
    parts = build(runs.config(*FOUR, objective=MOVING))
    module, count_them, step = parts.module, parts.module.count, parts.module.step

    def counted(batches):
        state = {name: p.detach().clone() for name, p in module.student.state_dict().items()}
        seen.append({"state": state, "batches": [batch for _, batch in batches]})
        return count_them(batches)

    def stepped():
        seen[-1]["gradient"] = {name: p.grad.clone() for name, p in module.student.named_parameters()}
        step()

    module.count, module.step = counted, stepped
    fit(runs.config(*FOUR, objective=MOVING), parts, runs.started(path))
    return path, seen


def test_weights_by_hand(steps):
    """They are logged under the number of steps done."""
    logged = runs.metrics(steps[0])
    for step, weights in enumerate(BY_HAND, start=1):
        for name in ("fkl", "crowded", "squared"):
            assert float(logged[f"{step},train,{name}_weight"]) == pytest.approx(weights[name], rel=1e-12)
    assert "1,train,sft_weight" not in logged


def test_gradients_are_those_of_the_terms_weighed_by_hand(steps):
    """Each term alone, weight 1, at the step's weights and on its two or three micro-batches."""
    alone = {name: build(runs.config(*FOUR, objective={name: {**MOVING[name], "weight": 1.0}})) for name in MOVING}
    for seen, weights in zip(steps[1], BY_HAND, strict=True):
        counts, expected = Counts(*count(seen["batches"]).tolist()), {}
        assert len(seen["batches"]) > 1
        for name, parts in alone.items():
            parts.module.student.load_state_dict(seen["state"])
            parts.module.zero_grad()
            for batch in seen["batches"]:
                parts.module.loss(batch, parts.module.observe(batch), counts).backward()
            for key, p in parts.module.student.named_parameters():
                expected[key] = expected.get(key, 0.0) + weights[name] * p.grad
        for key, gradient in seen["gradient"].items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-7)  # rows weigh float32 numbers


# ---- silence ---------------------------------------------------------------------------------------------------------


def test_no_model_is_read_for_a_silent_term(tmp_path):
    """The teacher is read in the first half alone; that half is what it cost."""
    cost = {}
    for name, weight in {"half": SOONER, "all": 1.0}.items():
        objective = {"sft": runs.term(cross_entropy), "fkl": runs.term(forward_kl, weight)}
        cfg = runs.config(*FOUR, "optim.window=24", objective=objective)  # all records in each step
        parts, read = build(cfg), set()

        def seen(*_, module=parts.module, read=read):
            read |= {module.step_count} if module.student.training else set()  # validation reads it, too

        hook = parts.module.models.teacher.register_forward_pre_hook(seen)
        fit(cfg, parts, runs.started(tmp_path / name))
        hook.remove()  # jobs of one process share their teacher
        assert read == ({0, 1} if name == "half" else {0, 1, 2, 3})
        cost[name] = parts.module.budget.teacher_tokens
    assert cost["half"] * 2 == cost["all"] > 0


def test_a_mean_is_over_the_steps_that_were_not_silent(steps, tmp_path):
    """Nothing is logged of a term that was silent since the last time."""
    single = runs.metrics(steps[0])
    assert "1,train,squared" not in single
    assert "2,train,squared" not in single
    mean = (float(single["3,train,squared"]) + float(single["4,train,squared"])) / 2
    runs.train(runs.config(*FOUR[:-1], "log_every=4", objective=MOVING), tmp_path)
    logged = runs.metrics(tmp_path)
    assert float(logged["4,train,squared"]) == pytest.approx(mean, rel=1e-9)
    assert float(logged["4,train,squared_weight"]) == 0.5
    assert float(logged["4,train,crowded_weight"]) == pytest.approx((8 + 4 + 2 + 1) / 4)
    fkl = sum(float(single[f"{step},train,fkl"]) for step in range(1, 5)) / 4
    assert float(logged["4,train,fkl"]) == pytest.approx(fkl, rel=1e-9)


def test_a_silent_term_takes_no_mean_and_its_parameters_stay(tmp_path):
    """While it is silent; they are in the optimizer and in the checkpoint all the while."""
    objective = {"sft": runs.term(cross_entropy), "scaled": runs.term(runs.Rescaled, LATER, lr=0.1)}
    objective["paced"] = runs.term(runs.Paced, LATER)
    cfg = runs.config(*FOUR, objective=objective)
    parts, scales = build(cfg), []
    step = parts.module.step

    def stepped():
        step()
        scales.append(parts.module.stateful["scaled"].scale.item())

    start, parts.module.step = parts.module.stateful["scaled"].scale.item(), stepped
    fit(cfg, parts, runs.started(tmp_path))
    assert scales[:2] == [start, start]
    assert len({start, *scales}) == 3
    assert [step for _, step in parts.module.objective["paced"].loss.means] == [3, 4]
    assert len(runs.checkpoint(tmp_path)["optimizer_states"]) == 2


def test_a_weight_of_nothing_leaves_the_term_out(tmp_path):
    objective = {"sft": runs.term(cross_entropy), "fkl": runs.term(forward_kl, 0.0)}
    parts = runs.train(runs.config(*FOUR, objective=objective), tmp_path / "with")
    runs.train(runs.config(*FOUR, objective={"sft": objective["sft"]}), tmp_path / "without")
    assert parts.module.budget.teacher_tokens == 0
    assert runs.differences(tmp_path / "with", tmp_path / "without") == []


# ---- resume ----------------------------------------------------------------------------------------------------------


RESUMED = {**MOVING, "paced": runs.term(runs.Paced, SOONER), "scaled": runs.term(runs.Rescaled, LATER)}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A whole run, and one that was stopped after step 7: the two later terms were active once since the last log."""
    root = tmp_path_factory.mktemp("halves")
    for name, signals in {"whole": [], "cut": [(7, 0, "SIGTERM")]}.items():
        went(root / name, *signals)
    return root / "whole", root / "cut"


def went(path, *signals):
    cfg = runs.config(runs.DROPOUT, objective=RESUMED, rollout=runs.scripted(path, *signals))
    try:
        runs.train(cfg, path)
    except SystemExit:
        assert signals
    return path


def test_a_run_that_was_stopped_goes_on_with_its_weights(halves, tmp_path):
    whole, cut = halves
    shutil.copytree(cut, tmp_path / "run")
    assert runs.checkpoint(cut)["distillation"]["active_steps"]["squared"] == 1
    assert runs.differences(whole, went(tmp_path / "run")) == []


def test_the_number_of_steps_that_it_spoke_in_is_needed(halves, tmp_path):
    whole, cut = halves
    shutil.copytree(cut, tmp_path / "run")
    state = torch.load(cut / "checkpoints/last.ckpt", weights_only=True)
    state["distillation"]["active_steps"] = {}
    runs.rewrite(state, tmp_path / "run/checkpoints/last.ckpt")
    found = runs.differences(whole, went(tmp_path / "run"))
    assert found
    assert all(difference.startswith("metrics") for difference in found)


# ---- before any weight is loaded -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"fkl": {"start": 1.0}}, "objective.fkl.weight.end is missing"),
        ({"fkl": {"start": 1.0, "end": "none"}}, "objective.fkl.weight.end=none"),
        ({"fkl": {"start": 1.0, "end": 0.5, "form": "linear"}}, "objective.fkl.weight.form: a schedule takes no form"),
        ({"fkl": {"start": 1.0, "end": 0.5, "shape": "linera"}}, "did you mean linear?"),
        ({"fkl": {"start": 1.0, "end": 0.0, "shape": "exponential"}}, "no exponential goes from 1.0 to 0.0"),
        ({"fkl": {"start": 1.0, "end": 0.5, "begin": 0.7, "until": 0.5}}, "no part of a run"),
        ({"fkl": {"start": 1.0, "end": 0.5, "until": 2.0}}, "objective.fkl.weight.until=2.0"),
        ({"fkl": {"start": 1.0, "end": -0.5}}, "a negative weight makes the term grow"),
        ({"fkl": {"start": -0.1, "end": -1, "shape": "exponential"}}, "a negative weight makes the term grow"),
        ({"fkl": 1.0, "sft": -1}, "objective.sft.weight=-1: a negative weight makes the term grow instead of fall"),
        ({"fkl": "much"}, "objective.fkl.weight=much: should be float or Schedule"),
        ({"fkl": SOONER}, "nothing is left to learn from at 0.5 of the run"),
        ({"fkl": SOONER, "sft": 0.0}, "nothing is left to learn from at 0.5 of the run"),
        ({"fkl": {**SOONER, "until": 0.8}, "sft": {**LATER, "begin": 0.8, "until": 1.0}}, "at 0.8 of the run"),
    ],
)
def test_a_bad_weight_is_refused_in_one_sentence(weights, sentence):
    cfg = runs.config(f"objective=[{','.join(weights)}]")
    for name, weight in weights.items():
        cfg.objective[name].weight = weight
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        check(cfg)
    assert "\n" not in str(raised.value)


def test_terms_may_take_turns():
    weights = (f"objective.fkl.weight={_line(SOONER)}", f"objective.sft.weight={_line(LATER)}")
    cfg = runs.config("objective=[fkl,sft]", *weights)
    check(cfg)
    assert describe(cfg).startswith(
        "objective = (1 → 0 at 0.5 of the run) · KL(p ‖ q) [fkl] + (0 → 1 at 0.5 of the run) · −log q(y_t) [sft]   ("
    )
    cfg.objective.sft.weight = {"start": 0.1, "end": 1, "shape": "exponential"}
    assert "+ (0.1 → 1 exponentially) · −log q(y_t) [sft]" in describe(cfg)


def _line(node) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in node.items()) + "}"


# ---- some responses alone --------------------------------------------------------------------------------------------


DEMONSTRATED = {"_target_": "kd.rollouts.paired.Demonstrated", "samples": 2, "max_new_tokens": 6}


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
@pytest.mark.parametrize("responses", ["student", "other"])
@pytest.mark.parametrize("loss", [cross_entropy, runs.crowded_cross_entropy, runs.Rescaled, runs.squared_surprise])
def test_a_term_learns_on_the_responses_of_its_writers_and_is_their_mean(loss, responses, reduction):
    """By hand: the others might as well not be there."""
    objective = {"term": runs.term(loss, responses=responses)}
    parts = build(runs.config(*runs.EXACT, f"reduction={reduction}", objective=objective, rollout=DEMONSTRATED))
    module = parts.module
    batches = module.rollout(parts.data.windows()[0].batches, module.models, Progress(0, 10), module.encoder)
    counts = Counts(*count(batches).tolist())
    found = sum(module.loss(b, module.observe(moved(b, module.device)), counts) for b in batches)
    per_response = [one for batch in batches for one in _by_hand(parts, batch, loss, responses)]
    if loss is runs.squared_surprise:
        total = sum(values.sum() for values in per_response)
        expected = total if reduction == "sum" else total / len(per_response)
    elif reduction == "sequence":
        expected = sum(values.mean() for values in per_response) / len(per_response)
    else:
        total = torch.cat(per_response)
        expected = total.sum() if reduction == "sum" else total.mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def _by_hand(parts, batch, loss, responses):
    """The values of each response that counts."""
    scale = parts.module.stateful["term"].scale if loss is runs.Rescaled else None
    logits = parts.module.student(batch.student, frozenset({"logits"})).logits
    nll = -label_logprobs(logits.rows(slice(0, logits.n)), batch.student.labels[batch.student.mask]).detach()
    for values, writer in zip(nll.split(batch.student.mask.sum(1).tolist()), batch.written_by.tolist(), strict=True):
        if (writer == 2) == (responses == "student"):
            yield {
                cross_entropy: lambda v: v,
                runs.crowded_cross_entropy: lambda v: v * len(v) / 10,
                runs.Rescaled: lambda v: v * scale.detach() + (scale.detach() - 2) ** 2,
                runs.squared_surprise: lambda v: (v.sum()[None] / 100) ** 2,
            }[loss](values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sft.responses": "mine"}, "objective.sft.responses=mine"),
        ({"discriminator.responses": "student"}, "Discriminator has one value for a prompt or a pair"),
        ({"sft.stream": "lm"}, "sft needs written_by, which plain text does not have"),
    ],
)
@pytest.mark.long
def test_responses_that_nothing_distinguishes_are_refused(changes, sentence):
    cfg = runs.config("objective=[gad,sft]", "reward=discriminator", "rollout=demonstrated", "corpus=docstrings")
    cfg.compare = None
    for key, value in {"sft.responses": "other", **changes}.items():
        OmegaConf.update(cfg.objective, key, value, force_add=True)
    with pytest.raises(ValueError, match=sentence):
        check(cfg)


def test_the_header_names_the_model_of_the_responses():
    cfg = runs.config("objective=[gad,sft]", "+objective.sft.responses=other")
    assert "[gad_kl, student responses" in describe(cfg)
    assert "−log q(y_t) [sft, other responses]" in describe(cfg)
