"""The Lightning trainer of a run: callbacks, loggers, and filters of warnings that do not apply here."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
import transformers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.precision import DoublePrecision
from omegaconf import DictConfig, OmegaConf

from kd.metrics.table import Metric
from kd.models.sharding import Sharding
from kd.program import is_rank_zero
from kd.progress import is_animated, remark
from kd.reports.wandb.account import logged_in
from kd.runs.folder import RunFolder
from kd.runs.metrics_log import TidyLogger
from kd.secrets import masked, unrevealed
from kd.training.callbacks import Saving, TrainingProgress, WholeFiles
from kd.training.module import Distillation
from kd.training.observers import callbacks_of, loggers_of
from kd.training.sharding import NAME as SHARDED
from kd.training.sharding import sharded_strategy
from kd.training.target_audit import Audit
from kd.training.tolerance import tolerant

QUIET = [
    "You have overridden `transfer_batch_to_device`",  # on purpose: micro-batches move one at a time
    "The '.*_dataloader' does not have many workers",  # windows are encoded once and cached
    r"`isinstance\(treespec, LeafSpec\)`",  # between Lightning and torch
    "Found .* module\\(s\\) in eval mode",  # set in on_fit_start
    "You're resuming from a checkpoint that ended before the epoch",  # a window is a function of the step
    "Checkpoint directory .* exists and is not empty",  # a run is resumed
    "`is_gradient_checkpointing` is deprecated",  # between PEFT and transformers
    "FSDP2-wrapped module .* returned a view tensor",  # no output of a model is changed in place
    "torch.distributed is disabled, unavailable or uninitialized",  # one process reads shards, which is meant
    "It is recommended to use `self.log",  # the module sums over ranks before it logs
]
for message in QUIET:
    warnings.filterwarnings("ignore", message)
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
transformers.utils.logging.disable_progress_bar()  # bars of a tenth of a second between ours


def trainer_of(
    cfg: DictConfig,
    folder: RunFolder,
    to: list[Logger],
    saving: Saving,
    module: Distillation,
    monitored: Metric,
    scores: Callback | None,
) -> lightning.Trainer:
    """The trainer of `optim.steps` windows, which logs to `to` and is saved and stopped by `saving`.

    monitored: the metric of `checkpoint.monitor`. scores: what logs the task's own, before it is compared.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    settings.pop("callbacks", None)
    settings.pop("sharding", None)
    plugins: list[Any] = [WholeFiles(folder.config_hash)]
    if settings["strategy"] == SHARDED:  # what is gathered in inference mode could not be learnt with afterwards
        settings |= {"strategy": sharded_strategy(_ranks(settings)), "inference_mode": False}
        if settings["precision"] == "64-true":  # which Lightning takes for this strategy as a plugin alone
            del settings["precision"]
            plugins.append(DoublePrecision())
    own = [callback for callback in callbacks_of(cfg) if is_animated() or not isinstance(callback, ProgressBar)]
    drawn = any(isinstance(callback, ProgressBar) for callback in own)  # in place of ours
    if not module.reaches_everything and _is_ddp(settings):  # nor, it may be, the last blocks
        settings["strategy"] = "ddp_find_unused_parameters_true"
    return lightning.Trainer(
        **settings,
        max_epochs=1,  # one pass over `steps` windows
        logger=to,
        callbacks=[
            *([scores] if scores else []),
            *compared(cfg, folder, monitored),
            saving,
            *audits(cfg),
            *own,
            *([] if drawn else [TrainingProgress()]),
        ],
        plugins=plugins,
        enable_progress_bar=drawn,
        default_root_dir=folder.path,
        val_check_interval=min(cfg.checkpoint.validate, cfg.optim.steps),
        num_sanity_val_steps=-1 if cfg.checkpoint.validate_first else 0,  # -1: all of it, unless the run is resumed
        log_every_n_steps=1,  # the module logs at its own interval
        use_distributed_sampler=False,  # windows are dealt to the ranks already
        enable_model_summary=False,
    )


def sharding_of(cfg: DictConfig) -> Sharding | None:
    """The settings of a run whose models are sharded; None for another."""
    return Sharding(**cfg.trainer.get("sharding", {})) if cfg.trainer.strategy == SHARDED else None


def _is_ddp(settings: Mapping[str, Any]) -> bool:
    """True if Lightning takes its plain DDP, by name or by default."""
    return settings["strategy"] == "ddp" or (settings["strategy"] == "auto" and _ranks(settings) > 1)


def _ranks(settings: Mapping[str, Any]) -> int:
    """The number of processes that learn together."""
    devices, here = settings["devices"], torch.cuda.device_count()
    count = len(devices) if isinstance(devices, list) else {"auto": here, -1: here, "-1": here}.get(devices, devices)
    return int(count) * settings.get("num_nodes", 1)


def audits(cfg: DictConfig) -> list[Audit]:
    """The audit of kept targets against the whole teacher, where the config has one."""
    audit = cfg.get("targets", {}).get("audit")
    return [] if audit is None or audit.every is None else [Audit(**audit)]


def compared(cfg: DictConfig, folder: RunFolder, monitored: Metric) -> list[Callback]:
    """The callbacks that compare validations: one keeps `best.ckpt`, weights only, and one ends the run that gets no
    better for `checkpoint.patience` of them."""
    mode = "max" if monitored.higher_is_better else "min"
    kept = ModelCheckpoint(
        folder.checkpoints,
        "best",
        monitor=cfg.checkpoint.monitor,
        mode=mode,
        save_weights_only=True,
        save_on_train_epoch_end=False,  # Lightning's default with validation at every step
        save_top_k=1,
        enable_version_counter=False,
    )
    if cfg.checkpoint.patience is None:
        return [kept]
    settings: dict[str, Any] = {"mode": mode, "check_finite": False, "check_on_train_epoch_end": False}  # as above
    return [kept, EarlyStopping(cfg.checkpoint.monitor, patience=cfg.checkpoint.patience, **settings)]


def loggers(cfg: DictConfig, folder: RunFolder, skill: str | None = None) -> list[Logger]:
    """Loggers beside metrics.csv, as `conf/logger` names them; one that fails logs no more, and the run goes on.

    skill: the name of the skill, by which W&B tags the run.
    """
    found = loggers_of(cfg, folder.path)
    if "wandb" not in cfg.logger or "_target_" in cfg.logger.wandb or not is_rank_zero():
        return found
    from kd.reports.wandb.record import address, tolerated  # pandas and wandb, which other runs do without

    run = tolerated(lambda: _wandb_run(cfg, folder, skill), "logger=wandb")
    if run is None:
        return found
    if page := address(run):
        remark(f"W&B: {page}")
    made = WandbLogger(experiment=run, project=cfg.logger.wandb.project, save_dir=str(folder.path))
    return [*found, tolerant(made, "wandb")]


def _wandb_run(cfg: DictConfig, folder: RunFolder, skill: str | None) -> Any:
    from kd.reports.wandb.record import begin, group_of

    settings: Mapping[str, Any] = cfg.logger.wandb
    again = [str(folder.old_runs)] if folder.old_runs else []  # after run.force=true, not into the old run's curves
    return begin(
        folder.path,
        "-".join([folder.config_hash, *again]),
        unrevealed(cfg),
        mode=settings["mode"] or ("online" if logged_in() else "offline"),
        project=settings["project"],
        entity=settings["entity"],
        group=masked(settings["group"] or "") or group_of(folder.path.name, cfg.seed),
        job_type=settings["job_type"],
        tags=[masked(str(tag)) for tag in settings["tags"]],
        skill=skill,
    )


def summarise(to: Sequence[Logger], results: Mapping[str, Any], step: int) -> None:
    """Log the final numbers (`kd.reports.wandb.final`) to the loggers of the config; W&B's run ends with them."""
    others = [logger for logger in to if not isinstance(logger, TidyLogger | WandbLogger)]
    if not others:
        return
    from kd.reports.wandb.final import final

    numbers = final(results)
    for logger in others:
        logger.log_metrics(numbers, step)
        logger.save()
        logger.finalize("success")
