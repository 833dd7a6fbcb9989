"""Training steps on a GPU that computes no values, where whatever a host would have to wait for is an error.

Run: python -m tests.training.host_waits FOLDER    prints what was found, by case, as JSON

A process of its own, for torch's engine of backward passes takes no new kind of device once it has run.
"""

import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from kd.experiment import loading
from kd.experiment.build import build
from kd.models import packing
from tests import runs

aten = torch.ops.aten
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default)
DEVICE = torch.device("ipu", 0)  # torch has its name and neither kernels nor, as of CUDA, streams for it
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(IPU, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::IPU>)
"""
STEPS = 3
HALF = [f"{role}.model.dtype=bfloat16" for role in ("teacher", "student")]
CASES: dict[str, dict[str, Any]] = {
    **{name: {"objective": name} for name in ("fkl", "jsd", "skew_rkl", "[fkl,sft]")},
    # `paced` takes its mean after each step
    "every domain": {"objective": {name: node for name, node in runs.MIXED.items() if name != "paced"}},
    "sequence": {"objective": "fkl", "overrides": ["reduction=sequence"]},
    "half": {"objective": "fkl", "overrides": HALF},
}
WAITS: dict[str, Callable[[Any], Any]] = {
    "item": lambda module: module.means["loss"].item(),
    "bool": lambda module: bool(module.means["loss"] > 0),
    "copy": lambda module: module.means["loss"].cpu(),
    "size": lambda module: module.student.network.get_input_embeddings().weight.nonzero(),
}


class Waits(Exception):
    """An operation at which the host waits for its GPU."""


class NoGPU(FakeTensorMode):
    """A mode in which tensors on the CPU are computed with and those on `DEVICE` have shapes alone.

    Raises `Waits` for an operation that gives the host a value or a size of one of them, or copies it to the host.
    open: whether that is allowed; a number is 0 then. uploads: of memory that may be paged out.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.open, self.uploads = True, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        without_values = [x for x in tensors if isinstance(x, FakeTensor)]
        there = [x for x in without_values if x.device.type == DEVICE.type]
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not without_values and target != DEVICE.type:
            return func(*args, **kwargs)
        if there and (func in WAITING or target == "cpu") and not self.open:
            raise Waits(str(func))
        if there and func is aten._local_scalar_dense.default:
            return 0
        if tensors and not without_values and not self.open and not kwargs.get("non_blocking"):
            self.uploads += 1  # copied before the call returns
        return super().__torch_dispatch__(func, types, args, kwargs)


class GPU(Accelerator):
    """The accelerator of Lightning for it."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "shapes"


class Strategy(SingleDeviceStrategy):
    """Lightning's, which leaves the network there: it could not be put back."""

    def teardown(self) -> None: ...


class Done(Exception):
    """The steps are over, before anything is logged."""


class Watch(lightning.Callback):
    """Closes the GPU while steps are made, and tries all waits in the last one."""

    def __init__(self, gpu: NoGPU):
        self.gpu, self.found = gpu, list[str]()

    def on_train_start(self, *_: Any) -> None:
        self.gpu.open = False

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        for name, wait in WAITS.items() if module.step_count == STEPS - 1 else ():
            try:
                wait(module)
            except Waits:
                self.found.append(name)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if module.step_count == STEPS:
            raise Done


def steps(objective: Any, overrides: list[str] | tuple = ()) -> Mapping[str, Any]:
    """A few steps of a few micro-batches each: the wait that there was, the uploads, and which waits were found."""
    loading._shared_teacher.cache_clear()  # it would be on the device of the case before
    named = [f"objective={objective}"] if isinstance(objective, str) else []
    nodes = {} if named else {"objective": objective}
    parts = build(runs.config("log_every=100", "optim.window=9", *named, *overrides, **nodes))
    _ = parts.module.models.teacher.model.packs  # found out once, in the first step at the latest
    gpu, read = NoGPU(), list[str]()
    watch, own = Watch(gpu), packing.varlen_attn
    packing.varlen_attn = lambda q, *a, **k: read.append(str(q.dtype)) or own(q, *a, **k)  # type: ignore[assignment]
    trainer = lightning.Trainer(
        strategy=Strategy(DEVICE, accelerator=GPU()),
        max_epochs=1,
        logger=False,
        callbacks=[watch],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    wait = None
    try:
        with gpu:
            trainer.fit(parts.module, datamodule=parts.data)
    except Done:
        pass
    except Exception:
        wait = traceback.format_exc()
    packing.varlen_attn = own
    uploads, made = gpu.uploads, parts.module.step_count
    return {
        "wait": wait,
        "uploads": uploads,
        "steps": made,
        "found": sorted(set(watch.found)),
        "read": sorted(set(read)),
    }


def main(folder: Path) -> None:
    """Make the guard that torch's C++ wants of every device, a library of one line; then all cases."""
    os.environ.setdefault("KD_ALLOW", "tests")
    own, source, made = Path(torch.__file__).parent, folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD)
    how = ["-std=c++20", "-shared", "-fPIC", f"-I{own / 'include'}", f"-L{own / 'lib'}", "-lc10"]
    subprocess.run(["g++", str(source), "-o", str(made), *how], check=True)
    ctypes.CDLL(str(made))
    fused: Any = sys.modules["torch.optim.optimizer"]
    fused._get_fused_kernels_supported_devices = lambda: ["cpu", DEVICE.type]
    packing.HALF_ON, packing._is_exact = DEVICE.type, lambda *_: True  # type: ignore[assignment]
    print(json.dumps({name: steps(**case) for name, case in CASES.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
