"""Runs of `kd.training` that take a second: byte models of a layer or two, a toy skill, a rollout that is scripted."""

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from kd.rollouts.offline import Offline
from kd.run_folder import RunFolder
from kd.sequences import Encoder
from kd.training import Parts, build, fit
from kd.types import Batch, Models, Progress, Record, Split
from tests.tiny import records

CONF = Path(__file__).parents[1] / "conf"
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
EXACT = ["trainer.precision=64-true", "teacher.model.dtype=float64", "student.model.dtype=float64"]
DROPOUT = "+student.model.architecture.attention_dropout=0.2"  # the one dropout that a Llama has
STEPS = 10
SMALL = [
    *(f"{role}.model.architecture.{name}={value}" for role in ("teacher", "student") for name, value in SIZE.items()),
    "+teacher.model.architecture.initializer_range=0.3",  # a teacher that says something
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
        cfg = compose("config", overrides=["teacher=tiny", "student=tiny", *SMALL, *overrides])
    nodes = {"skill": {"_target_": "tests.runs.Toy"}, **nodes}
    with open_dict(cfg):
        for name, node in nodes.items():
            cfg[name] = OmegaConf.create(node)
    return cfg


def train(cfg: DictConfig, path: Path) -> Parts:
    """Build and fit, on from what `path` holds; the final state is in `checkpoints/last.ckpt`."""
    parts = build(cfg)
    fit(cfg, parts, started(path))
    return parts


def started(path: Path) -> RunFolder:
    """The run folder `path`."""
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def one_step(cfg: DictConfig, **changes: Any) -> Parts:
    """Parts after the gradients of one window were made, before the step; `changes` replace fields of the module."""
    parts = build(cfg)
    for name, value in changes.items():
        setattr(parts.module, name, value)
    parts.module.step = lambda: setattr(parts.module, "step_count", parts.module.step_count + 1)
    parts.module.flush = lambda: None
    trainer = lightning.Trainer(
        **OmegaConf.to_container(cfg.trainer),
        max_steps=1,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(parts.module, datamodule=parts.data)
    return parts


def gradients(parts: Parts) -> dict[str, Tensor]:
    """Of the student, by name."""
    return {name: p.grad.clone() for name, p in parts.module.student.named_parameters() if p.grad is not None}


# ---- what the configs name -------------------------------------------------------------------------------------------


class Toy:
    """Conversations of unequal lengths, one turn each."""

    name, metric, licence, group_key = "toy", "accuracy", "CC0-1.0", "record"

    def load(self, split: Split) -> list[Record]:
        """24 for training, so that ten windows of five begin a third epoch."""
        return records(24, seed=("train", "validation", "test").index(split))

    def score(self, record: Record, text: str) -> float:
        """Whether the answer is the reference."""
        return float(text == record.responses[0].text)


class Scripted:
    """Another rollout, beside which every window's record ids are written down and signals are sent in mid-window.

    log: folder; `ids.<rank>.jsonl` gets a line [step, ids] for each window. signals: [step, rank, name] each: sent by
    `rank` to itself while it works on the step that makes `step` steps done.
    """

    provides: ClassVar[frozenset[str]] = Offline.provides
    requires: ClassVar[frozenset[str]] = Offline.requires

    def __init__(self, log: str, signals: Iterable[tuple[int, int, str]] = (), inner: Any = None):
        self.log, self.signals, self.inner = Path(log), list(signals), inner or Offline()

    @property
    def generated_tokens(self) -> int:
        return getattr(self.inner, "generated_tokens", 0)

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        ids = [record.id for batch in window for record in batch.records]
        with (self.log / f"ids.{rank}.jsonl").open("a") as file:
            file.write(json.dumps([progress.step, ids]) + "\n")
        for step, whose, name in self.signals:
            if (step, whose) == (progress.step + 1, rank):
                os.kill(os.getpid(), getattr(signal, name))
        return self.inner(window, models, progress, encoder)


def scripted(log: Path, *signals: tuple[int, int, str], inner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config node of a `Scripted` rollout."""
    log.mkdir(parents=True, exist_ok=True)
    return {"_target_": "tests.runs.Scripted", "log": str(log), "signals": [list(s) for s in signals], "inner": inner}


def smooth_cross_entropy(student_logprobs: Float[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """-log q of each token, more the more tokens its response has: no sum over rows."""
    lengths = (student_logprobs != 0).sum(-1, keepdim=True)
    return -student_logprobs * (1 + 0.1 * lengths) + 0.0 * labels


def squared_surprise(student_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """The square of each response's -log q in bits / 100: no sum over positions."""
    return (student_logprobs.sum(-1) / 100) ** 2


def term(function: Any, weight: float = 1.0) -> dict[str, Any]:
    """The config node of an objective's term."""
    target = function if isinstance(function, str) else f"{function.__module__}.{function.__qualname__}"
    return {"weight": weight, "kind": "test", "loss": {"_target_": target, "_partial_": True}}


# ---- comparing two runs ----------------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two finished run folders disagree about, bit for bit; clocks are left out."""
    states = [torch.load(p / "checkpoints/last.ckpt", weights_only=True) for p in (one, other)]
    for state in states:
        state["distillation"]["budget"].pop("seconds")
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "distillation")
    found = _unequal([{name: state[name] for name in kept} for state in states], "")
    found += _unequal([_best(state) for state in states], "best")
    found += _unequal([metrics(p) for p in (one, other)], "metrics")
    found += _unequal([windows(p) for p in (one, other)], "windows")
    return found + _unequal([finals(p) for p in (one, other)], "final")


def metrics(path: Path) -> dict[str, str]:
    """The rows of metrics.csv, but for rates."""
    rows = [row.rpartition(",") for row in (path / "metrics.csv").read_text().splitlines()[1:]]
    assert len({key for key, _, _ in rows}) == len(rows), "a row was written twice"
    return {key: value for key, _, value in rows if "tokens_per_second" not in key}


def windows(path: Path) -> dict[str, Any]:
    """Record ids by rank and step, as the last attempt at the step had them."""
    logs = {log.name: map(json.loads, log.read_text().splitlines()) for log in sorted(path.glob("ids.*.jsonl"))}
    return {f"{name}:{step}": ids for name, lines in logs.items() for step, ids in lines}


def finals(path: Path) -> dict[str, Any]:
    """What each rank left behind, where it did: weights and the random state."""
    return {file.name: torch.load(file, weights_only=True) for file in sorted(path.glob("final.*.pt"))}


def _best(state: Mapping[str, Any]) -> dict[str, Any]:
    saved = [s for name, s in state["callbacks"].items() if "monitor': 'validation" in name]
    return {name: saved[0][name] for name in ("best_model_score", "current_score")} if saved else {}


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
