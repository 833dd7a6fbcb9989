import contextlib
import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch import Tensor

from kd.data.sequences import Encoder, encode
from kd.experiment.build import build, reads_packed
from kd.models.digests import weights_digest
from kd.reports.wandb.account import logged_in
from kd.reports.wandb.record import STEP
from kd.rollouts import Rollout
from kd.rollouts.offline import Offline
from kd.runs.folder import RunFolder
from kd.sweeps.jobs import isolated
from kd.training.trainer import loggers, summarise
from kd.types import Batch, Models, Progress
from tests import runs
from tests.wandb_records import Record, records_of


def digests(*overrides: str, **nodes: Any) -> tuple[str, str]:
    """Of the initial weights and of the order of the records."""
    parts = build(runs.config(*overrides, **nodes))
    return weights_digest(parts.module.student), parts.data.order_digest()


def test_jobs_that_differ_in_their_objective_start_alike():
    """Same weights and same order, with another objective, a term that draws weights itself, or no teacher at all."""
    stateful = {"scaled": runs.term(runs.Rescaled), "fkl": runs.term(runs.forward_kl)}
    first = digests()
    assert digests("objective=rkl") == first
    assert digests(objective=stateful) == first
    assert digests("objective=sft", "alignment=none", teacher={"_target_": None, "prepare": None}) == first
    assert digests("rollout=on_policy", "data.max_tokens=999", "optim.lr=1.0") == first


def test_another_seed_is_another_start_and_another_order():
    (weights, order), (other_weights, other_order) = digests(), digests("seed=2")
    assert weights != other_weights
    assert order != other_order


def test_padding_is_bounded_only_where_it_costs_time():
    def bound(*changes: str) -> float:
        return build(runs.config(*changes)).encoder.max_padding

    assert bound() == bound("objective=sft") == 1.0
    windows = ("student.model.architecture.model_type=mistral", "+student.model.architecture.sliding_window=8")
    assert bound(*windows) == 0.1
    assert bound("objective=minilm") == 0.1  # it looks into attention
    assert bound("objective=hidden_mse") == 0.1  # and this at hidden states, which are laid out with padding


def test_a_reward_model_that_reads_padding_counts():
    module = build(runs.config()).module
    assert reads_packed(module)
    module.models = module.models._replace(reward=SimpleNamespace(model=SimpleNamespace(packs=False)))
    assert not reads_packed(module)


def test_a_term_draws_the_same_whatever_stands_beside_it():
    def drawn(*names: str) -> Tensor:
        parts = build(runs.config(objective={name: runs.term(runs.Rescaled) for name in names}))
        return parts.module.stateful["probe"].scale

    assert drawn("probe") == drawn("another", "probe")
    assert (
        drawn("probe")
        != build(runs.config(objective={"another": runs.term(runs.Rescaled)})).module.stateful["another"].scale
    )


def test_a_random_teacher_is_the_same_in_every_process_and_for_every_seed():
    """It is not the run's: jobs of all seeds share it, and so do the ranks."""
    from kd.experiment.loading import _shared_teacher

    seen = set()
    for seed in (1, 2):
        _shared_teacher.cache_clear()
        torch.manual_seed(seed)
        seen.add(weights_digest(build(runs.config(f"seed={seed}")).teacher))
    assert len(seen) == 1


# ---- loggers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which `wandb login` would keep a key; there is none."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "netrc"


def record_of(folder: RunFolder, *overrides: str, skill: str = "toy") -> Record:
    """The record of the last W&B run of a folder, which its loggers begin."""
    with isolated():
        folder.start("", [])
        assert len(loggers(runs.config("logger=wandb", *overrides), folder, skill)) == 1
    return records_of(folder.path)[-1]


def test_a_wandb_run(tmp_path, account):
    folder = RunFolder.of(tmp_path, "toy-fkl-s1", "0" * 12)
    found = record_of(folder, "logger.wandb.tags=[a]")
    assert (found.id, found.name) == ("0" * 12, f"toy-fkl-s1-{'0' * 12}")
    assert (found.group, found.job_type) == ("toy-fkl", "train")
    assert set(found.tags) == {"a", "skill:toy"}
    assert found.config["seed"] == 1
    assert found.config["logger"]["wandb"]["tags"] == ["a"]


def test_wandb_is_disabled_by_its_mode_or_the_environment(tmp_path, account, monkeypatch):
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    with isolated():
        loggers(runs.config("logger=wandb", "logger.wandb.mode=disabled"), folder)
        monkeypatch.setenv("WANDB_MODE", "disabled")
        loggers(runs.config("logger=wandb"), folder)
    assert records_of(folder.path) == []
    assert loggers(runs.config(), folder) == []


def test_wandb_is_online_where_a_key_is_found(tmp_path, account, monkeypatch):
    assert not logged_in()
    account.write_text("machine api.wandb.ai login user password secret\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not logged_in()  # the key is of another server
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert logged_in()


def test_a_forced_run_is_another_wandb_run_and_a_resumed_one_is_not(tmp_path, account):
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    ids = []
    for _ in range(3):
        ids.append(record_of(folder).id)
        assert record_of(folder).id == ids[-1]
        folder.set_aside()
    assert ids == ["0" * 12, f"{'0' * 12}-1", f"{'0' * 12}-2"]


def test_a_run_after_the_service_of_wandb_was_killed_is_recorded(tmp_path, account):
    """A sweep in one process outlives the service: the runs after it lose nothing."""
    for name in ("a", "b", "c"):
        assert record_of(RunFolder.of(tmp_path, name, name * 12)).id == name * 12
        services = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        assert services
        for service in services:
            service.kill()
        psutil.wait_procs(services, timeout=10)


def test_a_rank_other_than_zero_begins_no_wandb_run(tmp_path, account, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder.of(tmp_path, "toy", "0" * 12)
    assert loggers(runs.config("logger=wandb"), folder) == []
    assert not (folder.path / "wandb").exists()


def test_curves_of_two_runs_in_one_process_do_not_mix(tmp_path, account):
    """The second begins though the first was not ended, as after an error."""
    with isolated():
        for seed in (1, 2):
            cfg = runs.config("logger=wandb", f"seed={seed}", "optim.steps=2", "log_every=1", "checkpoint.validate=1")
            runs.train(cfg, tmp_path / f"toy-s{seed}-{str(seed) * 12}")
    for seed in (1, 2):
        folder = tmp_path / f"toy-s{seed}-{str(seed) * 12}"
        (found,) = records_of(folder)
        logged = {
            f"{row[STEP]},{name.replace('/', ',', 1)}": value
            for row in found.history
            for name, value in row.items()
            if "/" in name and name != STEP and "tokens_per_second" not in name
        }
        assert logged == {key: float(value) for key, value in runs.metrics(folder).items()}
        assert found.config["seed"] == seed


def test_a_run_is_not_lost_by_wandb(tmp_path, account, capsys):
    """It refuses the project's name (which is checked before a run, too)."""
    with isolated():
        runs.train(runs.config("logger=wandb", "logger.wandb.project=a/b", "optim.steps=1", "log_every=1"), tmp_path)
    assert (tmp_path / "metrics.csv").exists()
    assert "caution: logger=wandb failed" in capsys.readouterr().out


class Refusing(CSVLogger):
    """Fails at the second call, as when a server goes away."""

    calls = 0

    def log_metrics(self, metrics, step=None) -> None:
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("no answer from the server")
        super().log_metrics(metrics, step)

    def finalize(self, status) -> None:
        raise ConnectionError("gone")


def test_a_run_is_not_lost_by_a_logger_that_fails(tmp_path, capsys):
    cfg = runs.config("optim.steps=4", "log_every=1", "logger=csv")
    OmegaConf.set_struct(cfg, False)
    cfg.logger = {"mine": {"_target_": "tests.training.test_training.Refusing"}}
    runs.train(cfg, tmp_path)
    assert {key.partition(",")[0] for key in runs.metrics(tmp_path)} >= {"1", "2", "3", "4"}
    printed = capsys.readouterr().out
    assert printed.count("caution: logger mine failed and logs no more: no answer from the server") == 1
    assert "gone" not in printed


def test_the_final_numbers_are_logged_to_the_loggers_of_the_config(tmp_path):
    """At the last step, and not to metrics.csv, which holds what was measured while the run trained."""
    cfg = runs.config("optim.steps=2", "log_every=1")
    OmegaConf.set_struct(cfg, False)
    cfg.logger = {"table": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""}}
    parts = runs.train(cfg, tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    one = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    page = {"scores": {"toy": {"accuracy": {"after": one, "floor": None}}}, "gap_closed": {"toy": {"accuracy": None}}}
    summarise(parts.module.trainer.loggers, {**page, "agreement": None, "budget": {"tokens": 7}}, 2)
    rows = list(csv.DictReader((tmp_path / "table" / "metrics.csv").open()))
    assert rows[-1]["step"] == "2"
    assert rows[-1]["scores/toy/accuracy/after"] == "0.5"
    assert rows[-1]["budget/tokens"] == "7"
    assert (tmp_path / "metrics.csv").read_text() == before


# ---- what is logged --------------------------------------------------------------------------------------------------


class Watching(Rollout):
    """Offline, but every window's loss is also computed by the book, with the weights of that very step."""

    provides: ClassVar[frozenset[str]] = Offline.provides
    requires: ClassVar[frozenset[str]] = Offline.requires
    keeps_responses: ClassVar[bool] = True

    def __init__(self) -> None:
        self.seen: list[float] = []

    @torch.no_grad()
    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        values = [kl for batch in window for kl in forward_kls(models.teacher.model, models.student, batch.student)]
        self.seen.append(torch.cat(values).mean().item())
        return window


def forward_kls(teacher: Any, student: Any, sequences: Any) -> list[Tensor]:
    """KL(teacher || student) at each response position, row by row, from whole logits."""
    found = []
    for tokens, mask, length in zip(sequences.tokens, sequences.mask, sequences.lengths, strict=True):
        p, q = (m.network(tokens[None, :length]).logits[0, mask[:length]] for m in (teacher, student))
        p, q = (logits[:, : student.vocabulary].log_softmax(-1) for logits in (p, q))
        found.append((p.exp() * (p - q)).sum(-1))
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Ten steps; logged every three, validated at five and ten."""
    path = tmp_path_factory.mktemp("watched")
    cfg = runs.config(
        *runs.EXACT, "checkpoint.validate=5", rollout={"_target_": "tests.training.test_training.Watching"}
    )
    return runs.train(cfg, path), runs.metrics(path), path


def test_the_logged_loss_is_the_mean_since_the_last_row(watched):
    parts, logged, _ = watched
    seen = parts.module.rollout.seen
    assert len(seen) == 10
    for step, steps in {3: seen[0:3], 6: seen[3:6], 9: seen[6:9], 10: seen[9:]}.items():
        for name in ("fkl", "loss"):
            assert float(logged[f"{step},train,{name}"]) == pytest.approx(sum(steps) / len(steps), rel=1e-6)
    assert {key.split(",")[0] for key in logged if "train" in key} == {"3", "6", "9", "10"}


def measured(parts: Any) -> tuple[float, float]:
    """Bits per byte of the validation split's references, and forward KL per token, by the book."""
    student, nats, size, kls = parts.module.student.eval(), 0.0, 0, []
    for record in parts.skill.load("validation")[:7]:
        answer = record.responses[0].text
        row = encode(record.prompt, answer, student.tokenizer, 512)
        ids = torch.tensor(row.ids)
        with torch.no_grad():
            theirs, ours = (m.network(ids[None]).logits[0, row.prompt - 1 : -1] for m in (parts.teacher, student))
        p, q = (logits[:, : student.vocabulary].log_softmax(-1) for logits in (theirs, ours))
        nats -= q.gather(-1, ids[row.prompt :, None]).sum().item()
        size += len(answer.encode())
        kls.append((p.exp() * (p - q)).sum(-1))
    return nats / size / math.log(2), torch.cat(kls).mean().item()


def test_validation_is_the_likelihood_of_the_references_in_bits_per_byte(watched):
    parts, logged, _ = watched
    bits, kl = measured(parts)
    assert float(logged["10,validation,bits_per_byte"]) == pytest.approx(bits, rel=1e-9)
    assert float(logged["10,validation,forward_kl"]) == pytest.approx(kl, rel=1e-9)


def test_a_look_before_the_first_step_is_of_the_untouched_student_and_changes_nothing(tmp_path):
    """Once, also where the run was stopped and goes on; the student has dropout again when it learns."""
    overrides = (runs.DROPOUT, *runs.EXACT, "objective=sft")
    runs.train(runs.config(*overrides), tmp_path / "without")
    first = (*overrides, "checkpoint.validate_first=true")
    with contextlib.suppress(SystemExit):
        signal = runs.scripted(tmp_path / "cut", (4, 0, "SIGTERM"))
        runs.train(runs.config(*first, rollout=signal), tmp_path / "cut")
    runs.train(runs.config(*first), tmp_path / "cut")
    logged = runs.metrics(tmp_path / "cut")
    looked = {key: logged.pop(key) for key in [*logged] if key.startswith("0,")}
    assert logged == runs.metrics(tmp_path / "without")
    bits, kl = measured(build(runs.config(*overrides)))
    assert float(looked["0,validation,bits_per_byte"]) == pytest.approx(bits, rel=1e-9)
    assert float(looked["0,validation,forward_kl"]) == pytest.approx(kl, rel=1e-9)


def test_the_learning_rate_and_the_norm_are_logged(watched):
    _, logged, _ = watched
    # after one step of warm-up the k-th learns at 1e-2 (1 + cos(pi (k - 2) / 9)) / 2: cos(pi / 9) = .939693,
    # cos(4 pi / 9) = .173648, cos(7 pi / 9) = -.766044, cos(8 pi / 9) = -.939693
    for step, rate in {3: 9.698463e-3, 6: 5.86824e-3, 9: 1.169778e-3, 10: 3.01537e-4}.items():
        assert float(logged[f"{step},train,lr"]) == pytest.approx(rate, rel=1e-5)
    assert all(float(logged[f"{step},train,grad_norm"]) > 0 for step in (3, 6, 9, 10))


def test_best_is_kept_and_used(tmp_path):
    """At a learning rate that ruins the student, the first validation is the best."""
    cfg = runs.config(
        "optim.lr=3.0", "optim.schedule=constant", "checkpoint.validate=1", "optim.warmup=1.0", "checkpoint.use=best"
    )
    parts = runs.train(cfg, tmp_path)
    logged = {int(k.split(",")[0]): float(v) for k, v in runs.metrics(tmp_path).items() if "bits_per_byte" in k}
    assert sorted(logged) == list(range(1, 11))
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert best["distillation"]["step"] == min(logged, key=logged.__getitem__) < 10
    for name, value in parts.module.state_dict().items():
        assert torch.equal(value, best["state_dict"][name])
    assert not all(torch.equal(v, last["state_dict"][name]) for name, v in best["state_dict"].items())
    assert sorted(file.name for file in (tmp_path / "checkpoints").glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_trains(tmp_path, precision):
    dtype = {"64-true": "float64", "bf16-true": "bfloat16"}.get(precision, "float32")
    overrides = [f"{role}.model.dtype={dtype}" for role in ("teacher", "student")]
    runs.train(runs.config(*overrides, f"trainer.precision={precision}", "optim.steps=6"), tmp_path)
    logged = {key: float(value) for key, value in runs.metrics(tmp_path).items()}
    assert logged["6,train,fkl"] < logged["3,train,fkl"]


def test_a_window_smaller_than_the_ranks_and_too_few_validation_records_are_refused():
    from types import SimpleNamespace

    parts = build(runs.config("checkpoint.records=1"))
    parts.data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"1 validation records .* 2 ranks; raise checkpoint.records"):
        parts.data.val_dataloader()
