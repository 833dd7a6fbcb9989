from pathlib import Path

import pytest
import torch

from kd.data.sequences import collate, encode
from kd.experiment.build import build
from kd.kernels.logits import label_logprobs
from kd.models.digests import weights_digest
from kd.objectives.divergence import forward_kl
from kd.objectives.reduction import Counts, count
from kd.types import Batch, ModelOutput
from tests import runs
from tests.tiny import LLAMA, records

REDUCTIONS = ["token", "sequence", "sum"]
ONE_STEP = [*runs.EXACT, "optim.steps=1", "optim.window=24", "optim.clip=null"]  # of all records


# ---- one batch, by hand ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    return build(runs.config(*runs.EXACT, objective=runs.MIXED))


def batch(parts, chosen=slice(0, 5), of=5, **padding) -> Batch:
    tokenizer = parts.module.student.tokenizer
    kept = records(of)[chosen]
    rows = [encode(r.prompt, r.responses[0].text, tokenizer, 512) for r in kept]
    sequences = collate(rows, tokenizer.pad_token_id, **padding)
    return Batch(sequences, sequences, tuple(kept))


def loss_and_gradient(parts, made: Batch, counts: Counts | None = None):
    module = parts.module
    module.zero_grad()
    counts = counts or Counts(*count([made]).tolist())
    loss = module.loss(made, module.observe(made), counts)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.student.named_parameters()}


def assert_same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a[1], b[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_window_is_one_batch_or_many(tmp_path, reduction):
    """K micro-batches equal 1 x B, for terms over rows, positions and responses together."""
    cfg = runs.config(*ONE_STEP, f"reduction={reduction}", "data.max_tokens=64", objective=runs.MIXED)
    ran = runs.train(cfg, tmp_path)
    assert len(ran.module.encoder.batches(ran.data.train)) > 5
    fresh = build(cfg)
    loss, gradient = loss_and_gradient(fresh, batch(fresh, slice(None), of=24))
    logged = runs.metrics(tmp_path)
    assert float(logged["1,train,loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for name in ("crowded/length", "squared/surprise", "paced/gap"):  # metrics of terms
        assert float(logged[f"1,train,{name}"]) == pytest.approx(fresh.module.means[name].item(), rel=1e-11, abs=1e-13)
    for name, mean in runs.gradients(ran).items():
        torch.testing.assert_close(mean / (1 - cfg.optim.beta1), gradient[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "padding", [{"multiple": 64}, {"padding_side": "left"}, {"padding_side": "left", "multiple": 64}]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_changes_nothing(parts, padding, reduction):
    parts.module.reduction = reduction
    assert_same(loss_and_gradient(parts, batch(parts)), loss_and_gradient(parts, batch(parts, **padding)))


def test_what_stands_in_the_padding_and_under_the_mask_changes_nothing(parts):
    plain, scrambled = batch(parts), batch(parts)
    tokens, labels, mask = (getattr(scrambled.student, name) for name in ("tokens", "labels", "mask"))
    padded = torch.arange(tokens.shape[1])[None] >= scrambled.student.lengths[:, None]
    assert padded.any()
    tokens[padded] = torch.randint(0, 256, (int(padded.sum()),))
    labels[~mask] = torch.randint(0, 256, (int((~mask).sum()),))
    assert_same(loss_and_gradient(parts, plain), loss_and_gradient(parts, scrambled))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_equals_sliced(parts, reduction):
    """A response whose mask is False everywhere counts as if it were absent."""
    parts.module.reduction = reduction
    masked = batch(parts)
    masked.student.mask[3:] = False
    assert_same(loss_and_gradient(parts, masked), loss_and_gradient(parts, batch(parts, slice(0, 3))))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_is_the_formula(parts, reduction):
    """0.7 fkl + 0.5 fkl + 0.3 sft + crowded + 0.2 squared + 0.1, from whole logits, one response at a time.

    The last is `paced`: a student that has not learnt yet is its own reference.
    """
    parts.module.reduction = reduction
    made, teacher = batch(parts), parts.teacher
    per_token, squared = [], []
    for row in range(5):
        length, mask = made.student.lengths[row], made.student.mask[row]
        ids = made.student.tokens[row : row + 1, :length]
        q, p = (model.network(ids).logits[0][mask[:length]] for model in (parts.module.student, teacher))
        logq, logp = q[:, : teacher.vocabulary].log_softmax(-1), p[:, : teacher.vocabulary].log_softmax(-1)
        kl = (logp.exp() * (logp - logq)).sum(-1)
        nll = -logq.gather(-1, made.student.labels[row][mask][:, None])[:, 0]
        per_token.append((1.2 * kl + 0.3 * nll + nll * len(nll) / 10 + 0.1).detach())
        squared.append((nll.sum() / 100).item() ** 2)
    whole, lengths = torch.cat(per_token).sum(), sum(map(len, per_token))
    means = {
        "token": whole / lengths + 0.2 * sum(squared) / 5,
        "sequence": sum(v.mean() for v in per_token) / 5 + 0.2 * sum(squared) / 5,
        "sum": whole + 0.2 * sum(squared),
    }
    # rel: the weights of rows are float32 numbers
    assert loss_and_gradient(parts, made)[0].item() == pytest.approx(means[reduction].item(), rel=1e-6)


def test_row_wise_and_whole_terms_have_one_gradient():
    """forward KL through `over_chunks`, and through `[B T V]` logits."""
    made = []
    for name in ("fkl", "whole"):
        parts = build(runs.config(*runs.EXACT, objective={name: {**runs.MIXED[name], "weight": 1.0}}))
        made.append(loss_and_gradient(parts, batch(parts)))
    assert_same(*made, tolerance=1e-7)  # float32 row weights in the one, float64 sums of them in the other


# ---- modes of the models ---------------------------------------------------------------------------------------------


def saved_folder(path: Path, **fields) -> Path:
    """A checkpoint that `from_pretrained` loads."""
    from kd.models.networks import scratch
    from kd.seeding import seeded

    with seeded(0, "saved"):
        model = scratch(architecture={**LLAMA, **runs.SIZE, **fields}, dtype="float64")
    model.network.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def pretrained(folder: Path, lora: dict | None = None) -> dict:
    return {
        "_target_": "kd.models.networks.pretrained",
        "source": {"address": f"local:{folder}"},
        "dtype": "float64",
        "lora": lora,
    }


def test_teacher_is_frozen_silent_and_nowhere_in_the_run(tmp_path):
    """Its dropout is off, it is in no checkpoint and in no optimizer, and it does not move."""
    dropout = "+teacher.model.architecture.attention_dropout=0.5"
    logged = {}
    for name, overrides in {"with": [dropout], "without": []}.items():
        parts = runs.train(runs.config(*runs.EXACT, "optim.steps=3", *overrides), tmp_path / name)
        logged[name] = runs.metrics(tmp_path / name)
        assert not any(module.training for module in parts.teacher.modules())
        assert not any(p.requires_grad or p.grad is not None for p in parts.teacher.parameters())
    assert logged["with"] == logged["without"]
    assert weights_digest(parts.teacher) == weights_digest(build(runs.config(*runs.EXACT)).teacher)
    state = torch.load(tmp_path / "with/checkpoints/last.ckpt", weights_only=True)
    student = {f"student.{name}" for name in parts.module.student.state_dict()}
    assert set(state["state_dict"]) == student
    trained = sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"])
    assert trained == len(list(parts.module.student.parameters()))
    best = torch.load(tmp_path / "with/checkpoints/best.ckpt", weights_only=True)
    assert set(best["state_dict"]) == student
    assert "optimizer_states" not in best


def test_teacher_stays_silent_in_train_mode():
    parts = build(runs.config("+teacher.model.architecture.attention_dropout=0.5"))
    parts.module.models.teacher.train()
    made = batch(parts)
    logits = [parts.module.models.teacher(made.teacher, frozenset({"logits"})).logits.hidden for _ in range(2)]
    assert torch.equal(*logits)


def test_a_loaded_student_trains_with_dropout(tmp_path):
    """`from_pretrained` returns eval mode. Only dropout can make the seeds of the steps matter offline."""
    logged = {}
    for dropout in (0.0, 0.5):
        folder = saved_folder(tmp_path / f"model{dropout}", attention_dropout=dropout)
        for seed in (1, 2):
            path = tmp_path / f"{dropout}-{seed}"
            cfg = runs.config(*ONE_STEP, student={"model": pretrained(folder), "prepare": None})
            cfg.seed = seed
            parts = runs.train(cfg, path)
            assert parts.module.student.training
            logged[dropout, seed] = float(runs.metrics(path)["1,train,fkl"])
    assert logged[0.0, 1] == pytest.approx(logged[0.0, 2], rel=1e-12)
    assert logged[0.5, 1] != pytest.approx(logged[0.5, 2], rel=1e-6)


def test_validation_is_without_dropout(tmp_path):
    logged = []
    for dropout in ([], ["+student.model.architecture.attention_dropout=0.9"]):
        path = tmp_path / str(len(logged))
        runs.train(runs.config(*ONE_STEP, "optim.lr=1e-30", *dropout), path)
        logged.append({k: v for k, v in runs.metrics(path).items() if "validation" in k})
    assert logged[0] == logged[1]


LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}


def test_lora_trains_and_saves_adapters_only_and_resumes(tmp_path):
    student = {"model": pretrained(saved_folder(tmp_path / "model"), LORA), "prepare": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    parts = runs.train(runs.config(*runs.EXACT, student=student, rollout=runs.scripted(whole)), whole)
    state = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    adapters = [name for name, _ in parts.module.named_parameters() if "lora_" in name]
    assert sorted(state["state_dict"]) == sorted(adapters)
    assert sum(len(group["params"]) for group in state["optimizer_states"][0]["param_groups"]) == len(adapters)
    base = {n: p for n, p in parts.module.student.named_parameters() if "lora_" not in n}
    assert not any(p.requires_grad for p in base.values())

    stopping = runs.config(*runs.EXACT, student=student, rollout=runs.scripted(cut, (5, 0, "SIGTERM")))
    with pytest.raises(SystemExit):
        runs.train(stopping, cut)
    runs.train(runs.config(*runs.EXACT, student=student, rollout=runs.scripted(cut)), cut)
    assert runs.differences(whole, cut) == []


def test_terms_with_parameters_are_trained_saved_and_may_have_their_own_optimizer(tmp_path):
    for lr in (None, 0.1):
        path = tmp_path / str(lr)
        objective = {"fkl": runs.term(runs.forward_kl), "scaled": runs.term(runs.Rescaled, lr=lr)}
        parts = runs.train(runs.config("optim.steps=4", "optim.schedule=constant", objective=objective), path)
        state = torch.load(path / "checkpoints/last.ckpt", weights_only=True)
        assert len(state["optimizer_states"]) == (1 if lr is None else 2)
        scale = state["state_dict"]["stateful.scaled.scale"]
        assert scale == parts.module.stateful["scaled"].scale
        start = build(runs.config(objective=objective)).module.stateful["scaled"].scale
        moved = scale.item() - start.item()  # (scale - 2)^2 pulls up with AdamW's stride, which is the learning rate
        assert moved == pytest.approx(4 * (lr or 1e-2), rel=0.05)


def test_no_model_generates_that_was_not_requested(tmp_path):
    """sft reads no teacher, though there is one."""
    parts = build(runs.config("objective=sft"))
    hook = parts.module.models.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was read"))
    made = batch(parts)
    loss, _ = loss_and_gradient(parts, made)
    hook.remove()  # jobs of one process share their teacher
    hidden = parts.module.student(made.student, frozenset({"logits"})).logits
    nll = -label_logprobs(hidden.rows(slice(0, hidden.n)), made.student.labels[made.student.mask])
    assert loss.item() == pytest.approx(nll.mean().item(), rel=1e-6)


# ---- terms with a state, a reference, and reports beside the loss ----------------------------------------------------


def test_a_term_takes_its_mean_after_each_step(tmp_path):
    """Over the whole window, once per step, counting from one."""
    ran = runs.train(runs.config("log_every=1", objective={"paced": runs.term(runs.Paced)}), tmp_path)
    means, logged = ran.module.objective["paced"].loss.means, runs.metrics(tmp_path)
    assert [step for _, step in means] == list(range(1, runs.STEPS + 1))
    for value, step in means:
        assert float(logged[f"{step},train,paced"]) == pytest.approx(value, rel=1e-6)


def test_the_reference_is_where_the_student_began(tmp_path):
    cfg = runs.config(*runs.EXACT, objective={"paced": runs.term(runs.Paced)})
    ran, fresh = runs.train(cfg, tmp_path), build(cfg)
    assert weights_digest(ran.module.models.reference.model) == weights_digest(fresh.module.student)
    assert weights_digest(ran.module.student) != weights_digest(fresh.module.student)
    assert not any("reference" in name for name in runs.checkpoint(tmp_path)["state_dict"])


def test_reports_are_means_over_the_logged_steps(tmp_path):
    ran = runs.train(runs.config("log_every=5", objective={"paced": runs.term(runs.Paced)}), tmp_path)
    paces = [1.0]
    for value, _ in ran.module.objective["paced"].loss.means:
        paces.append(paces[-1] * (1 + 0.1 * value))
    assert float(runs.metrics(tmp_path)["10,train,pace"]) == pytest.approx(sum(paces[6:]) / 5, rel=1e-9)


class HalfCovered:
    """An alignment that has no word of the teacher about every other row."""

    provides = frozenset({"logits"})

    def __call__(self, native, batch):
        aligned_mask = torch.arange(native.logits.n) % 2 == 0
        return ModelOutput(logits=native.logits, aligned_mask=aligned_mask)


def test_rows_that_an_alignment_lost_teach_nothing_of_the_teacher():
    """They leave the sum, stay in what it is divided by, and other terms keep them."""
    parts = build(runs.config(*runs.EXACT, "objective=[fkl,sft]"))
    made = batch(parts)
    module, rows = parts.module, int(made.student.mask.sum())
    signals = module.observe(made)
    kl = forward_kl(*(signals[f"{role}_logits"].rows(slice(0, rows)) for role in ("student", "teacher")))
    nll = -label_logprobs(signals["student_logits"].rows(slice(0, rows)), made.student.labels[made.student.mask])
    module.alignment = HalfCovered()
    loss, _ = loss_and_gradient(parts, made)
    assert loss.item() == pytest.approx(((kl[::2].sum() + nll.sum()) / rows).item(), rel=1e-6)
