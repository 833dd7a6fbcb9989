"""The peak memory of real optimizer steps, to compare the estimate with."""

import threading
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import psutil
import torch
from omegaconf import open_dict

from kd.doctor.room import on_gpu
from kd.experiment.build import fit
from kd.experiment.checks import Subject
from kd.runs.folder import RunFolder

STEPS = 2  # in the second one the optimizer's moments are there already


class ResidentPeak:
    """Largest resident size of this process within a `with` block, in bytes, sampled every few milliseconds."""

    def __init__(self, interval: float = 0.002):
        self.interval, self.size = interval, resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ResidentPeak":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self.size = max(self.size, resident())


def resident() -> int:
    """Bytes of this process in memory now."""
    return psutil.Process().memory_info().rss


def measured(subject: Subject, before: int) -> int:
    """Peak bytes of a run of two steps: on the GPU, or the growth of this process since `before`.

    The run is a real one, with validation and checkpoints in a temporary folder; the student is changed by it.
    """
    cfg, parts = subject.cfg.copy(), subject.parts
    with open_dict(cfg):
        cfg.optim.steps, cfg.checkpoint.use, cfg.logger = STEPS, "last", {}
        cfg.trainer.update({"devices": 1, "strategy": "auto"})
    parts.module.alignment = subject.alignment
    parts.module.optimization = replace(parts.module.optimization, steps=STEPS)
    parts.data.steps = STEPS
    if on_gpu(cfg):
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder, ResidentPeak() as grown:
        fit(cfg, parts, RunFolder(Path(folder)))
    return torch.cuda.max_memory_allocated() if on_gpu(cfg) else grown.size - before
