"""Callbacks of a run: checkpoints, stops by signals that lose no step, the progress of training."""

import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kd.artifacts import remove, store_stream, verified
from kd.progress import Phase, phase
from kd.training.shards import Shards, folders, joined, keep_named


class Saving(Checkpoint):
    """Writes `last`, from which a run is resumed: between two steps, so after the validation of the one before, if any.

    Every `every` steps, at the end, and on SIGTERM or Ctrl-C. Then the run stops there, and `received` is the signal
    of the exit code (128 + signal); a second Ctrl-C stops at once. On several ranks all stop after the same step,
    whichever was signalled.
    """

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.received: int | None = None
        self.saved = 0  # step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Make signals wait for the end of a step. (Lightning restores the old handlers, however the run ends.)"""
        self.saved = pl_module.step_count
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Save if it is time, or if any rank has a signal to stop. (The module then refuses the next step.)"""
        trainer.should_stop = self._stopping(trainer) or trainer.should_stop  # or a callback ends the run
        if trainer.should_stop or pl_module.step_count % self.every == 0:
            self._save(trainer, pl_module.step_count)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the last step; a signal that came during it, or during its validation, counts too."""
        stopped = self._stopping(trainer)
        pl_module.ended |= trainer.should_stop and not stopped and not pl_module.finished
        self._save(trainer, pl_module.step_count)

    def _stopping(self, trainer: lightning.Trainer) -> bool:
        stop = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        if stop:
            self.received = self.received or signal.SIGTERM
        return stop  # not a signal that came since: the ranks would diverge

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        if step > self.saved:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved = step

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, whenever the process is killed, and with a manifest.

    Lightning's own pass through the system's temporary folder; when that is on another disk, the last step is a copy.
    Sharded tensors lie beside the file (`kd.training.shards`), and are whole when one process reads it.

    Args:
        run: the hash of the run that they belong to.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside, then rename; then delete shards of the one before."""
        facts = {"run": self.run, "step": checkpoint["global_step"]}
        store_stream(Path(path), lambda stream: torch.save(checkpoint, stream), kind="checkpoint", facts=facts)
        keep_named(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The content, with whole tensors."""
        return _assembled(Path(path), super().load_checkpoint(path, *args, **kwargs))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file and its manifest, then its shards."""
        remove_checkpoint(Path(path))


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint with its manifest and its shards, if it is there."""
    for part in (path, *folders(path)):
        remove(part)


def read_checkpoint(path: Path, run: str, *, whole: bool = True, **options: Any) -> dict[str, Any]:
    """The content of a checkpoint of the run with this hash, verified; `options` are `torch.load`'s.

    whole: whether sharded tensors are read, too. They are verified in any case.

    Raises:
        ValueError: a file was damaged, or belongs to another run.
    """
    remedy = f"put the undamaged file back, or delete the folder {path.parent} to begin at step 0"
    verified(path, remedy=remedy, **({"run": run} if run else {}))
    state = torch.load(path, map_location="cpu", weights_only=True, **options)
    if (shards := Shards.of(path, state)) is not None:
        shards.verify(remedy)
    return _assembled(path, state) if whole else state


def _assembled(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    shards = Shards.of(path, state)
    return state if shards is None else joined(state, shards.whole())


class TrainingProgress(Callback):
    """Shows the phase `train`: steps, tokens, the means of the terms, and the time that steps or a budget leave."""

    def __init__(self) -> None:
        self._open, self._validation = ExitStack(), ExitStack()
        self._phase: Phase | None = None
        self._tokens = 0  # before this process began

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the phase, of a resumed run at its step."""
        if trainer.is_global_zero:
            step, fraction, total = pl_module.step_count, pl_module.progress.fraction, pl_module.optimization.steps
            self._phase = self._open.enter_context(phase("train", total, "steps", done=step, fraction=fraction))
            self._tokens = pl_module.budget.tokens

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        """Show the step; at the logging interval, its metrics."""
        if self._phase is None:
            return
        step, total = pl_module.step_count, pl_module.optimization.steps
        if step % pl_module.log_every == 0 or step == total:
            self._phase.notes = _notes(trainer.progress_bar_metrics)
        self._phase.tokens = pl_module.budget.tokens - self._tokens
        self._phase.update(step, fraction=pl_module.progress.fraction)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Show that a validation is running."""
        if trainer.is_global_zero:
            self._validation.enter_context(phase("validate", leaves=False))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """End it."""
        self._validation.close()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """End the phase."""
        self._open.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """End what is shown; no line is left."""
        for shown in (self._validation, self._open):
            shown.__exit__(type(exception), exception, exception.__traceback__)


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    """The loss, and the means of terms that are not all of it."""
    train = {name.removeprefix("train/"): float(value) for name, value in metrics.items() if name.startswith("train/")}
    train.pop("tokens_per_second", None)
    loss = train.pop("loss", None)
    means = [(name, value) for name, value in sorted(train.items()) if value != loss]
    return [f"{name} {value:.3g}" for name, value in [*([] if loss is None else [("loss", loss)]), *means]]
