"""From a composed config to a trained student: build the parts, fit, stop and resume."""

import json
import logging
import re
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning
import torch
import transformers
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from kd.callbacks import ProgressLines, Saving, WholeFiles
from kd.data import Data
from kd.metrics_log import TidyLogger
from kd.models.identity import model_digest
from kd.models.language_model import LanguageModel
from kd.module import Distillation, Term
from kd.optimization import Optimization
from kd.run_folder import RunFolder
from kd.seeding import seeded
from kd.sequences import Encoder
from kd.types import Record, Skill

# Lightning's advice that does not apply to us, and why.
QUIET = [
    "You have overridden `transfer_batch_to_device`",  # on purpose: micro-batches move one at a time
    "The '.*_dataloader' does not have many workers",  # windows are encoded once and cached
    r"`isinstance\(treespec, LeafSpec\)`",  # between Lightning and torch
    "Found .* module\\(s\\) in eval mode",  # set in on_fit_start
    "You're resuming from a checkpoint that ended before the epoch",  # a window is a function of the step
    "Checkpoint directory .* exists and is not empty",  # that is what resuming is
    "It is recommended to use `self.log",  # the module sums over ranks before it logs
]
for message in QUIET:
    warnings.filterwarnings("ignore", message)
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
transformers.utils.logging.disable_progress_bar()  # bars of a tenth of a second between ours


@dataclass
class Parts:
    """What a run is made of, before the first step."""

    module: Distillation
    data: Data
    skill: Skill
    teacher: LanguageModel | None  # also there when only the evaluation wants it
    encoder: Encoder


def build(cfg: DictConfig) -> Parts:
    """Load skill, teacher and student, and put them together. Random weights depend on the seed and a name only."""
    skill: Skill = instantiate(cfg.skill)
    teacher = load_teacher(cfg.teacher)
    if teacher is not None:
        teacher.to(device(cfg))
    with seeded(cfg.seed, "student"):
        student: LanguageModel = instantiate(cfg.student.model, _convert_="all")
    alignment = instantiate(cfg.alignment)
    if teacher is not None:
        alignment.check(student.tokenizer, teacher.model.tokenizer)
    encoder = Encoder(
        student.tokenizer,
        None if teacher is None else teacher.model.tokenizer,
        max_length=cfg.data.max_length,
        max_tokens=cfg.data.max_tokens,
    )
    objective = {str(name): _term(term, cfg.seed, str(name)) for name, term in cfg.objective.items()}
    optimization = Optimization(**cfg.optim)
    module = Distillation(
        student,
        teacher,
        objective,
        instantiate(cfg.rollout),
        alignment,
        encoder,
        optimization,
        seed=cfg.seed,
        reduction=cfg.reduction,
        log_every=cfg.log_every,
    )
    data = Data(
        augmented(cfg, skill.load("train"), teacher),
        skill.load("validation")[: cfg.checkpoint.records],
        encoder,
        window=optimization.window,
        steps=optimization.steps,
        seed=cfg.seed,
        workers=cfg.data.workers,
    )
    return Parts(module, data, skill, None if teacher is None else teacher.model, encoder)


def _term(node: DictConfig, seed: int, name: str) -> Term:
    with seeded(seed, "objective", name):
        return Term(**instantiate(node, _convert_="all"))


def load_teacher(node: DictConfig) -> Any:
    """The teacher of a config node, or None. Jobs of one process share it: it is frozen, so nobody can tell."""
    if node.get("_target_") is None:
        return None
    return _shared_teacher(json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True))


@lru_cache(maxsize=1)
def _shared_teacher(node: str) -> Any:
    described = {key: value for key, value in json.loads(node).items() if key not in ("prepare", "licence")}
    with seeded(0, "teacher"):  # whatever the run's seed; it matters to random weights only
        return instantiate(described, _convert_="all")


def place(cfg: DictConfig, parts: Parts) -> None:
    """Student and teacher to where the trainer computes, so that both are measured on the same device."""
    parts.module.student.to(device(cfg))
    if parts.teacher is not None:
        parts.teacher.to(device(cfg))


def device(cfg: DictConfig) -> torch.device:
    """What `trainer.accelerator` comes down to for one process."""
    name = cfg.trainer.accelerator
    return torch.device("cuda" if name in ("gpu", "cuda", "auto") and torch.cuda.is_available() else "cpu")


def augmented(cfg: DictConfig, records: Any, teacher: Any) -> list[Record]:
    """The training records after the augmentation's stages, in order."""
    stages = instantiate(cfg.augmentation.stages)
    if stages and teacher is not None:
        writer: dict[str, Any] = {"teacher": teacher.model, "teacher_id": model_digest(teacher.model)}
    else:
        writer = {"teacher": None, "teacher_id": "none"}
    for stage in stages:
        records = stage(records, **writer, seed=cfg.seed)
    return list(records)


def fit(cfg: DictConfig, parts: Parts, folder: RunFolder) -> None:
    """Train to the last step, from the last checkpoint if there is one.

    Raises SystemExit(128 + signal) when a signal stopped it; what was trained is saved then.
    """
    last = folder.checkpoints / "last.ckpt"
    resumed = last if last.exists() else None
    log, step = TidyLogger(folder.path), 0
    if resumed:
        step = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["distillation"]["step"]
        rank_zero_only(print)(f"resuming {folder.path} at step {step} of {cfg.optim.steps}", flush=True)
    log.truncate_after(step)  # the rows of steps that were lost, all if nothing was saved
    saving = Saving(last, cfg.checkpoint.every)
    trainer = _trainer(cfg, folder, [log, *loggers(cfg, folder)], saving)
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:  # it came before `saving` listened, so before the first step
        saving.received = signal.SIGTERM
    if saving.received is not None:
        step = parts.module.step_count
        rank_zero_only(print)(f"stopped at step {step}; the same command goes on from there", flush=True)
        # The first rank tells. When another one fails, Lightning kills all.
        raise SystemExit(128 + saving.received if trainer.is_global_zero else 0)
    if cfg.checkpoint.use == "best":
        state = torch.load(folder.checkpoints / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
        parts.module.load_state_dict(state, strict=parts.module.strict_loading)


def _trainer(cfg: DictConfig, folder: RunFolder, to: list[Logger], saving: Saving) -> lightning.Trainer:
    terminal = Console().is_terminal
    return lightning.Trainer(
        **OmegaConf.to_container(cfg.trainer, resolve=True),  # type: ignore[arg-type]
        max_epochs=1,  # one pass over `steps` windows
        logger=to,
        callbacks=[best(cfg, folder), saving, *([] if terminal else [ProgressLines()])],
        plugins=[WholeFiles()],
        enable_progress_bar=terminal,
        default_root_dir=folder.path,
        val_check_interval=min(cfg.checkpoint.validate, cfg.optim.steps),
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # the module logs when it has something to say
        use_distributed_sampler=False,  # windows are dealt to the ranks already
        enable_model_summary=False,
    )


def best(cfg: DictConfig, folder: RunFolder) -> ModelCheckpoint:
    """Keeps `best.ckpt`, weights only."""
    return ModelCheckpoint(
        folder.checkpoints,
        "best",
        monitor=cfg.checkpoint.monitor,
        save_weights_only=True,
        save_on_train_epoch_end=False,  # what Lightning would make of validating at every step
        save_top_k=1,
        enable_version_counter=False,
    )


def loggers(cfg: DictConfig, folder: RunFolder) -> list[Logger]:
    """Loggers beside metrics.csv, as `conf/logger` names them."""
    if "wandb" not in cfg.logger:
        return []
    settings: Mapping[str, Any] = cfg.logger.wandb
    name = folder.path.name
    config = OmegaConf.to_container(cfg, resolve=True)
    return [
        WandbLogger(
            project=settings["project"],
            group=settings["group"] or re.sub(rf"(-s{cfg.seed})?-[0-9a-f]+$", "", name),
            tags=list(settings["tags"]),
            mode=settings["mode"],
            offline=settings["mode"] == "offline",
            name=name,
            id=folder.config_hash,
            job_type="train",
            save_dir=str(folder.path),
            config=config,
        )
    ]


def peak_memory_bytes() -> int:
    """Of this process so far: on the GPU if it used one, else resident (loading and evaluation included)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
