"""Runs of `kd.experiment.build` that take a second: byte models of a layer or two, a toy skill, a scripted rollout."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from jaxtyping import Bool, Float
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from kd.data.sequences import Encoder
from kd.experiment.build import Parts, build, fit
from kd.experiment.task_scores import task_scores
from kd.models.digests import weights_digest
from kd.objectives.divergence import cross_entropy, forward_kl
from kd.rollouts import Rollout
from kd.rollouts.offline import Offline
from kd.runs.folder import RunFolder
from kd.seeding import derive
from kd.training.callbacks import WholeFiles, read_checkpoint
from kd.types import Batch, Models, Progress, Record, Skill, Split
from tests.tiny import records

Signal = tuple[int, int, str] | tuple[int, int, str, float]  # step, rank, name, seconds after the step's beginning
CONF = Path(__file__).parents[1] / "conf"
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
EXACT = ["trainer.precision=64-true", "teacher.model.dtype=float64", "student.model.dtype=float64"]
DROPOUT = "+student.model.architecture.attention_dropout=0.2"  # the one dropout that a Llama has
STEPS = 10
DOMAINS = ("sums", "words")
_NETWORK = {**SIZE, "model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 512}
SMALL = [
    *(f"{role}.model.architecture.{name}={value}" for role in ("teacher", "student") for name, value in SIZE.items()),
    "+teacher.model.architecture.initializer_range=0.3",  # a teacher with distinct predictions
    "+student.model.architecture.initializer_range=0.1",
    "teacher.model.architecture.num_hidden_layers=1",
    "student.model.architecture.num_hidden_layers=1",
    "teacher.prepare=null",
    f"optim.steps={STEPS}",
    "optim.window=5",
    "optim.lr=1e-2",
    "data.max_tokens=128",  # two or three micro-batches a window
    "checkpoint.every=4",
    "checkpoint.validate=3",
    "checkpoint.records=7",
    "log_every=3",
]


def config(*overrides: str, **nodes: Any) -> DictConfig:
    """The composed config of a tiny run. `nodes` replace whole sections."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [] if any(word.startswith("trainer=") for word in overrides) else ["trainer=cpu"]
        cfg = compose("config", overrides=["teacher=tiny", "student=tiny", *words, *SMALL, *overrides])
    nodes = {"skill": {"_target_": "tests.runs.Toy"}, **nodes}
    with open_dict(cfg):
        for name, node in nodes.items():
            cfg[name] = OmegaConf.create(node)
    return cfg


def train(cfg: DictConfig, path: Path, synchronised: bool = True) -> Parts:
    """Build and fit, on from what `path` holds. The end is in `last.ckpt`, and each rank's in `final.<rank>.pt`."""
    parts = build(cfg)
    initial = weights_digest(parts.module.student)
    if not synchronised:
        parts.module.synchronised = lambda last: parts.module.trainer.strategy.block_backward_sync()
    fit(cfg, parts, started(path), task_scores(cfg, parts))
    final = {"initial": initial, "weights": dict(parts.module.student.state_dict()), "random": torch.get_rng_state()}
    final |= {"derived": derive(1, "a component", 2)}
    torch.save(final, path / f"final.{os.environ.get('LOCAL_RANK', 0)}.pt")
    return parts


def started(path: Path) -> RunFolder:
    """The run folder `path`."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def rewrite(state: dict[str, Any], path: Path) -> None:
    """A checkpoint with another content, as if the run had saved that."""
    WholeFiles("").save_checkpoint(state, path)


def gradients(parts: Parts) -> dict[str, Tensor]:
    """What the student's optimizer has seen: the running mean of its gradients, by name.

    Unlike AdamW's update it is linear in them, so that a wrong factor shows.
    """
    states = parts.module.trainer.optimizers[0].state
    return {name: states[p]["exp_avg"] for name, p in parts.module.student.named_parameters() if p in states}


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, once for all of pytest's workers; one that it left half filled is made again.

    `make` fills another folder, which then gets its name: what it writes there may not name the place.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            half = folder.with_name(f"{name}.half")
            shutil.rmtree(half, ignore_errors=True)
            make(half)
            half.rename(folder)
    return folder


def in_processes(*jobs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`tests/run_worker.py` on `jobs`, in processes of their own."""
    command = [sys.executable, str(Path(__file__).with_name("run_worker.py")), json.dumps(jobs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        outputs = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after 300 seconds:\n{process.communicate()[1][-8000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, *outputs)


def job(path: Path, *overrides: str, synchronised: bool = True, **nodes: Any) -> dict[str, Any]:
    """A job for `in_processes`: a fit in the folder `path`. `nodes` replace sections of the config."""
    nodes = {"rollout": scripted(path), **nodes}
    return {"path": str(path), "overrides": list(overrides), "nodes": nodes, "synchronised": synchronised}


# ---- what the configs name -------------------------------------------------------------------------------------------


class Toy(Skill):
    """Conversations of unequal lengths, one turn each."""

    name, metric, licence, group_key = "toy", "accuracy", "CC0-1.0", "record"

    def load(self, split: Split) -> list[Record]:
        """24 for training, so that ten windows of five begin a third epoch."""
        return records(24, seed=("train", "validation", "test").index(split))

    def score(self, record: Record, text: str) -> float:
        """Whether the answer is the reference."""
        return float(text == record.responses[0].text)


class OfDomains(Toy):
    """Conversations of two domains, in turn."""

    def load(self, split: Split) -> list[Record]:
        """Each names its own."""
        return [replace(one, meta={"teacher": DOMAINS[i % 2]}) for i, one in enumerate(super().load(split))]


class Scripted(Rollout):
    """Another rollout, beside which every window's records are written down, and signals sent.

    log: folder; `windows.<rank>.jsonl` gets a line [step, [ids, seed]] for each. signals: each sent by its rank to
    itself while it works on the step that makes `step` steps done, or so many seconds later.
    """

    provides: ClassVar[frozenset[str]] = Offline.provides
    requires: ClassVar[frozenset[str]] = Offline.requires

    def __init__(self, log: str, signals: Iterable[Signal] = (), inner: Any = None):
        self.log, self.signals, self.inner = Path(log), list(signals), inner or Offline()
        self.uses, self.samples, self.ahead = self.inner.uses, self.inner.samples, self.inner.ahead
        self.keeps_responses = self.inner.keeps_responses
        self.take_report, self.after_validation = self.inner.take_report, self.inner.after_validation
        self.state_dict, self.load_state_dict = self.inner.state_dict, self.inner.load_state_dict
        self.foresee = self.inner.foresee

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        ids = [record.id for batch in window for record in batch.records]
        with (self.log / f"windows.{rank}.jsonl").open("a") as file:
            file.write(json.dumps([progress.step, [ids, torch.initial_seed()]]) + "\n")
        for step, whose, name, *delay in self.signals:
            if (step, whose) == (progress.step + 1, rank):
                send(name, *delay)
        return self.inner(window, models, progress, encoder)


class Muted(Offline):
    """The given responses, of which those on the second rank are masked."""

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        if int(os.environ.get("LOCAL_RANK", 0)) == 1:
            for batch in window:
                batch.student.mask.zero_()
        return super().__call__(window, models, progress, encoder)


def send(name: str, delay: float = 0.0) -> None:
    """A signal to this process, or with "group" before it to all that a terminal's Ctrl-C would reach."""
    number = getattr(signal, name.split()[-1])
    to = partial(os.killpg, os.getpgrp()) if name.startswith("group") else partial(os.kill, os.getpid())
    if delay:
        threading.Timer(delay, to, (number,)).start()
    else:
        to(number)


def scripted(log: Path, *signals: Signal, inner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config node of a `Scripted` rollout."""
    log.mkdir(parents=True, exist_ok=True)
    return {"_target_": "tests.runs.Scripted", "log": str(log), "signals": [list(s) for s in signals], "inner": inner}


def crowded_cross_entropy(
    student_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
    """-log q of each token times a tenth of its response's length: no function of a row alone."""
    lengths = mask.sum(-1, keepdim=True)
    return -student_logprobs * lengths / 10, {"length": lengths.to(student_logprobs).expand_as(mask)}


def whole_forward_kl(
    student_logits: Float[Tensor, "B T V"], teacher_logits: Float[Tensor, "B T V"]
) -> Float[Tensor, "B T"]:
    """KL(teacher || student), from logits as plain as can be."""
    p, q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def squared_surprise(
    student_logprobs: Float[Tensor, "B T"],
) -> tuple[Float[Tensor, " B"], dict[str, Float[Tensor, " B"]]]:
    """The square of each response's -log q / 100: one value for each response."""
    surprise = -student_logprobs.sum(-1) / 100
    return surprise**2, {"surprise": surprise}


class Rescaled(nn.Module):
    """Cross-entropy times a number that is learnt, after a start that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + torch.rand(()))

    def forward(self, student_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return -student_logprobs * self.scale.detach() + (self.scale - 2) ** 2


class Paced(nn.Module):
    """How far the student has left its starting point on the labels, at a pace that follows what was reached before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pace", torch.ones((), dtype=torch.float64))
        self.means: list[tuple[float, int]] = []

    def forward(
        self, student_logprobs: Float[Tensor, "*n"], reference_logprobs: Float[Tensor, "*n"]
    ) -> tuple[Float[Tensor, "*n"], dict[str, Float[Tensor, "*n"]]]:
        gap = reference_logprobs - student_logprobs
        return (gap + 1) * self.pace.to(student_logprobs.dtype), {"gap": gap}

    def after_step(self, value: float, progress: Progress) -> None:
        self.means.append((value, progress.step))
        self.pace.mul_(1 + 0.1 * value)

    def take_report(self) -> dict[str, tuple[float, float]]:
        return {"pace": (float(self.pace), 1.0)}


def term(loss: Any, weight: float = 1.0, **more: Any) -> dict[str, Any]:
    """The config node of an objective's term."""
    target = f"{loss.__module__}.{loss.__qualname__}"
    return {
        "weight": weight,
        "kind": "test",
        "loss": {"_target_": target, "_partial_": not isinstance(loss, type)},
        **more,
    }


MIXED = {  # of every domain, row-wise and not
    "fkl": term(forward_kl, 0.7),
    "sft": term(cross_entropy, 0.3),
    "crowded": term(crowded_cross_entropy),
    "whole": term(whole_forward_kl, 0.5),
    "squared": term(squared_surprise, 0.2),
    "paced": term(Paced, 0.1),
}


def experts() -> dict[str, Any]:
    """The config node of a teacher for each of DOMAINS, one of them sharper than the other."""
    models = {name: {**_NETWORK, "initializer_range": wide} for name, wide in zip(DOMAINS, (0.1, 0.5), strict=True)}
    scratch = {"_target_": "kd.models.networks.scratch", "tokenizer": "bytes", "dtype": "float64", "lora": None}
    members = {
        name: {
            "_target_": "kd.teachers.white_box.WhiteBox",
            "model": {**scratch, "architecture": architecture},
            "prepare": None,
            "licence": None,
        }
        for name, architecture in models.items()
    }
    return {"_target_": "kd.teachers.routed.Routed", "members": members, "key": "teacher", "combine": "routed"}


# ---- comparing two runs ----------------------------------------------------------------------------------------------


def drawn() -> random.Random:
    """Another choice each time; KD_TEST_SEED repeats one that failed."""
    seed = int(os.environ.get("KD_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"KD_TEST_SEED={seed}")
    return random.Random(seed)


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two finished run folders disagree about, bit for bit; clocks are left out."""
    found = [f for name in ("last", "best") for f in _unequal([checkpoint(p, name) for p in (one, other)], name)]
    found += _unequal([metrics(p) for p in (one, other)], "metrics")
    found += _unequal([windows(p) for p in (one, other)], "windows")
    return found + _unequal([finals(p) for p in (one, other)], "final")


def checkpoint(path: Path, name: str = "last") -> dict[str, Any]:
    """What a checkpoint holds of the run, but for clocks and Lightning's own books."""
    state = read_checkpoint(path / f"checkpoints/{name}.ckpt", "")
    for clock in ("seconds", "peak_memory_bytes"):
        state["distillation"]["budget"].pop(clock)
    for clock in ("generation_share", "generation_wait", "teacher_wait"):
        state["distillation"]["reports"].pop(clock, None)
    return {k: state.get(k) for k in ("state_dict", "optimizer_states", "lr_schedulers", "distillation")}


def metrics(path: Path) -> dict[str, str]:
    """The rows of metrics.csv, but for rates."""
    rows = [row.rpartition(",") for row in (path / "metrics.csv").read_text().splitlines()[1:]]
    assert len({key for key, _, _ in rows}) == len(rows), "a row was written twice"
    clocks = ("tokens_per_second", "generation_share", "generation_wait", "teacher_wait")
    return {key: value for key, _, value in rows if not any(clock in key for clock in clocks)}


def windows(path: Path) -> dict[str, Any]:
    """Record ids and seed by "rank:step", as the last attempt at the step had them."""
    logs = {log.name.split(".")[1]: log.read_text().splitlines() for log in sorted(path.glob("windows.*.jsonl"))}
    return {f"{rank}:{step}": seen for rank, lines in logs.items() for step, seen in map(json.loads, lines)}


def finals(path: Path) -> dict[str, Any]:
    """What each rank left behind, where it did: weights and the random state."""
    return {file.name: torch.load(file, weights_only=True) for file in sorted(path.glob("final.*.pt"))}


def _unequal(pair: list[Any], name: str) -> list[str]:
    one, other = pair
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [*one, *(key for key in other if key not in one)]
        return [f for key in keys for f in _unequal([one.get(key), other.get(key)], f"{name}.{key}".strip("."))]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [f for i, two in enumerate(zip(one, other, strict=True)) for f in _unequal(list(two), f"{name}.{i}")]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [name]
    return [] if type(one) is type(other) and one == other else [name]
