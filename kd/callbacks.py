"""What watches a run: a signal that stops it without losing anything, a line of progress."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class StopOnSignal(Callback):
    """SIGTERM or Ctrl-C: the window is finished, the run saved, and `received` says with what to exit (128 + signal).

    A second Ctrl-C stops at once. On several ranks all stop after the same step, whichever was signalled.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From now on, signals wait for the end of a window."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Save and stop if any rank was told to."""
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self.received = self.received or signal.SIGTERM
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Signals act as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class ProgressLines(Callback):
    """Where there is no terminal to draw a bar in: a line at each logging interval."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The ETA counts from here, so a resumed run's is right too."""
        self._started, self._first = time.monotonic(), pl_module.step_count
        self._told = -1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Step, terms, rate, ETA."""
        step, total = pl_module.step_count, pl_module.optimization.steps
        if not trainer.is_global_zero or step % pl_module.log_every and step != total:
            return
        metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith("train/")}
        rate = metrics.pop("train/tokens_per_second", 0.0)
        per_step = (time.monotonic() - self._started) / max(step - self._first, 1)
        terms = "  ".join(f"{name.removeprefix('train/')} {value:.4f}" for name, value in sorted(metrics.items()))
        left = time.strftime("%H:%M:%S", time.gmtime(per_step * (total - step)))
        print(f"step {step}/{total}  {terms}  {rate:,.0f} tokens/s  ETA {left}", file=sys.stderr, flush=True)

