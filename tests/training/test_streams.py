"""Two streams of batches, limits on the budget, weights of importance: what the module does beside its terms."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from kd.data.blocks import Blocks, blocks
from kd.rollouts import Rollout
from kd.training.budget import Budget, Limits
from kd.training.observation import moved
from kd.types import Batch, Models, Progress
from tests import runs

TEXT = ["A page about nothing in particular, long enough for a few blocks of text.", "And another one, shorter."]
CE = "kd.objectives.divergence.cross_entropy"


def plain_text(tmp_path):
    (tmp_path / "page.md").write_text("\n".join(TEXT))
    return {"_target_": "kd.corpora.local.Local", "path": str(tmp_path / "page.md")}


def objective(**terms):
    return {name: {"kind": "likelihood", "loss": {"_target_": CE, "_partial_": True}, **t} for name, t in terms.items()}


def one_step(tmp_path, name, **nodes):
    cfg = runs.config(*runs.EXACT, "optim.steps=1", "optim.clip=null", "data.lm_length=20", "data.lm_window=3", **nodes)
    return runs.train(cfg, tmp_path / name)


def test_each_stream_is_averaged_over_its_own_tokens(tmp_path):
    """The gradient of weighted terms on two streams is the weighted sum of the gradients of two runs with one each."""
    corpus = plain_text(tmp_path)
    both = one_step(tmp_path, "both", corpus=corpus, objective=objective(sft={}, lm={"stream": "lm", "weight": 0.5}))
    sft = one_step(tmp_path, "sft", objective=objective(sft={}))
    found, of_sft = runs.gradients(both), runs.gradients(sft)
    mean_of_lm = of_plain_text(both, tmp_path)
    assert any(mean_of_lm[name].abs().max() > 1e-4 for name in found)
    for name, gradient in found.items():
        expected = of_sft[name] + (1 - 0.9) * 0.5 * mean_of_lm[name]
        assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9), name


def of_plain_text(parts, tmp_path):
    """By plain PyTorch: the gradient of the mean -log q over the step's blocks, at the initial weights."""
    fresh = runs.build(runs.config(*runs.EXACT, objective=objective(sft={}))).module.student.train()
    ids = blocks(["\n".join(TEXT)], fresh.tokenizer, 21)
    stream = Blocks(ids, pad=0, size=3, max_tokens=10_000, seed=1)
    rows = [torch.tensor(ids[i]) for i in stream.indices(0)]
    losses, labels = [], 0
    for row in rows:
        logits = fresh.network(row[None, :-1]).logits[0, :, : fresh.vocabulary]
        losses.append(nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
        labels += len(row) - 1
    (sum(losses) / labels).backward()
    assert int(parts.module.budget.tokens) > labels  # those of the skill beside them
    return {name: parameter.grad for name, parameter in fresh.named_parameters() if parameter.grad is not None}


def test_the_corpus_moves_on_and_is_dealt_to_ranks(tmp_path):
    cfg = runs.config(
        "data.lm_window=2",
        "data.lm_length=20",
        corpus=plain_text(tmp_path),
        objective=objective(sft={}, lm={"stream": "lm"}),
    )
    data = runs.build(cfg).data
    seen = [[batch.student.tokens.tolist() for batch in data.windows()[step].plain] for step in range(3)]
    assert seen[0] != seen[1]
    halves = [data.windows(rank, 2)[0].plain for rank in range(2)]
    together = sorted(row for half in halves for batch in half for row in batch.student.tokens.tolist())
    assert together == sorted(row for batch in data.windows()[0].plain for row in batch.student.tokens.tolist())


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student_flops", "tokens", "seconds", "generated_tokens"])
def test_a_run_stops_after_the_step_that_crosses_a_limit(tmp_path, name):
    rollout = ["rollout=on_policy", "rollout.max_new_tokens=6"] if name == "generated_tokens" else []
    whole = runs.train(runs.config(*rollout), tmp_path / "whole").module
    assert whole.step_count == runs.STEPS
    spent = getattr(whole.budget, name)
    limit = spent * 0.55
    part = runs.train(runs.config(*rollout, f"budget.{name}={limit}"), tmp_path / "part").module
    assert getattr(part.budget, name) >= limit
    if name != "seconds":  # the steps differ in time
        # the schedule ends elsewhere, and so do the weights: what those write is of other lengths
        steps = f"optim.steps={part.step_count - 1}"
        before = runs.train(runs.config(*rollout, steps), tmp_path / "before").module
        assert getattr(before.budget, name) < limit
        assert 1 < part.step_count < runs.STEPS
    log = pd.read_csv(tmp_path / "part/metrics.csv")
    assert set(log[log.name == "loss"].step) >= {part.step_count}  # what was not logged yet is
    assert log[log.split == "validation"].step.max() == part.step_count
    if name != "seconds":  # known after the schedule's step
        assert part.optimizers().param_groups[0]["lr"] == 0.0  # cosine has ended


def test_teacher_tokens_stop_a_run_and_those_read_before_it_count(tmp_path):
    whole = runs.train(runs.config(), tmp_path / "whole").module
    step = whole.budget.teacher_tokens / runs.STEPS
    part = runs.train(runs.config(f"budget.teacher_tokens={4 * step}"), tmp_path / "part").module
    assert 2 <= part.step_count <= 6
    labels = ["augmentation=labeling", "augmentation.stages.labeling.max_new_tokens=4"]
    labeled = runs.build(runs.config(*labels)).module.budget.teacher_tokens
    assert labeled > 24 * 4  # it read 24 prompts
    fewer = runs.train(runs.config(*labels, f"budget.teacher_tokens={labeled + 3 * step}"), tmp_path / "fewer").module
    assert fewer.step_count < part.step_count + 1
    assert fewer.budget.teacher_tokens > labeled
    with pytest.raises(ValueError, match=r"budget\.teacher_tokens=9 is used up .* before the first step"):
        runs.build(runs.config(*labels, "budget.teacher_tokens=9"))


def test_a_schedule_without_limits_goes_by_steps(tmp_path):
    """Ten steps of which one is warm-up, at the whole rate, and nine go down a cosine that begins at it."""
    runs.train(runs.config("optim.schedule=cosine", "optim.warmup=0.1", "log_every=1"), tmp_path)
    log = pd.read_csv(tmp_path / "metrics.csv")
    found = log[log.name == "lr"].sort_values("step").value.tolist()
    # cos(k pi / 9), k = 0 ... 8: 1, .939693, .766044, .5, .173648, and the same downwards; 1e-2 (1 + cos) / 2
    cosine = [1e-2, 9.698463e-3, 8.83022e-3, 7.5e-3, 5.86824e-3, 4.13176e-3, 2.5e-3, 1.169778e-3, 3.01537e-4]
    assert found == pytest.approx([1e-2, *cosine], rel=1e-5)


def test_the_nearest_limit_counts():
    spent = Budget(tokens=50, teacher_tokens=30, seconds=1.0)
    assert Limits().share(spent) == 0.0
    assert Limits(tokens=100, teacher_tokens=40).share(spent) == 0.75
    assert Progress(2, 10, 0.75).fraction == 0.75
    assert Progress(9, 10, 0.75).fraction == 0.9
    assert Progress(9, 10, 1.2).fraction == 1.0


# ---- importance ------------------------------------------------------------------------------------------------------


class Weighted(Rollout):
    """Offline, with a weight for each label: 0 at the first of a response, 3 at the others."""

    provides, requires, keeps_responses = frozenset({"importance_weights"}), frozenset(), True

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder) -> list[Batch]:
        for batch in window:
            first = batch.student.mask & (batch.student.mask.cumsum(-1) == 1)
            batch.importance_weights = torch.where(first, 0.0, 3.0) * batch.student.mask
        return window


@pytest.mark.parametrize("kind", ["likelihood", "policy"])
def test_values_are_weighted_but_what_divides_them_is_not(kind):
    cfg = runs.config(
        *runs.EXACT,
        objective=objective(sft={"kind": kind}),
        rollout={"_target_": "tests.training.test_streams.Weighted"},
    )
    module = runs.build(cfg).module
    [batch, *_] = module.rollout(runs.build(cfg).data.windows()[0].batches, module.models, module.progress, None)
    counts = module_counts(batch)
    loss = module.loss(moved(batch, module.device), module.observe(batch), counts)
    logprobs = module.student(batch.student, frozenset({"logprobs"})).logprobs
    weights = batch.importance_weights if kind == "likelihood" else batch.student.mask
    assert loss.item() == pytest.approx(
        (-(logprobs * weights).sum() / batch.student.mask.sum()).item(), rel=1e-6
    )  # counts are float32


def test_a_term_that_corrects_itself_is_not_weighted_again():
    """kdrl is of kind divergence, and has min(q/b, cap) in its value."""
    cfg = runs.config("objective=kdrl", "rollout=on_policy", "rollout.samples=2", "reward=verifier")
    term = runs.build(cfg).module.objective["kdrl"]
    assert term.kind == "divergence"
    batch = next(iter(runs.build(runs.config()).data.windows())).batches[0]
    weighted = replace(batch, importance_weights=torch.full(batch.student.mask.shape, 0.5))
    assert term.importance(weighted) is None
    assert runs.build(runs.config("objective=fkl")).module.objective["fkl"].importance(weighted) is not None


def module_counts(batch):
    from kd.objectives.reduction import Counts, count

    return Counts(*count([batch]).tolist())
