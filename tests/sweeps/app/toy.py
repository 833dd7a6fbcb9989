"""What the toy bench computes, and the ways in which it can go wrong."""

import gc
import os
import signal
import sys
import time
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.runs import folder as run_folder
from kd.runs.folder import RunFolder, config_hash

run_folder.environment = lambda: {}  # it imports torch, which is most of the time of a program that squares numbers


def folder_of(config: DictConfig) -> RunFolder:
    plain = OmegaConf.to_container(config, resolve=True)
    return RunFolder.of(config.run.root, config.run.name, config_hash(plain, digests={}, version={}))


def check(config: DictConfig) -> RunFolder | None:
    if config.x < 0:
        raise ValueError(f"x={config.x} is negative; choose x at or above 0")
    return None if config.run.force else folder_of(config)


def work(config: DictConfig, folder: RunFolder) -> dict[str, Any]:
    seen = {name: os.environ.get(name) for name in ("KD_LEAK", "KD_OURS", "WORLD_SIZE")}
    torch = sys.modules.get("torch")
    dtype = str(torch.get_default_dtype()) if torch else None
    gc.collect()
    configs = sum(type(thing) is DictConfig for thing in gc.get_objects())
    folder.write_json("seen.json", {**seen, "pid": os.getpid(), "dtype": dtype, "configs": configs})
    if config.behaviour == "fail":
        raise ValueError(f"x={config.x} cannot be learned; choose another x")
    if config.behaviour == "crash":
        raise RuntimeError("the machine is on fire")
    if config.behaviour == "exit":
        raise SystemExit(3)
    if config.behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.behaviour == "hang":
        _train_until_told_to_stop(folder, config.save_seconds)
    if config.behaviour == "leak":
        import torch

        os.environ["KD_LEAK"] = os.environ["KD_OURS"] = "leaked"
        torch.set_default_dtype(torch.float64)
    return results(config)


def _train_until_told_to_stop(folder: RunFolder, save_seconds: float) -> None:
    signals: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    folder.write_text("hanging", "")
    deadline = time.monotonic() + 60
    while not signals and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(save_seconds)  # a second Ctrl-C, or a parent that does not wait, would show here
    folder.write_text("checkpoints/last", f"saved after {len(signals)} signal")
    raise SystemExit(130)


def results(config: DictConfig) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "n": 4, "low": value - 1, "high": value + 1}

    pair = {"before": estimate(0.9), "after": estimate(0.5)}
    bits = {"floor": estimate(9.0), "before": estimate(8.0), "after": estimate(config.x**2)}
    return {
        "seed": config.seed,
        "scores": {"toy": {"bits_per_byte": bits}},
        "gap_closed": {"toy": {"bits_per_byte": 1 - config.x**2 / 9}},
        "agreement": {"top1": pair, "forward_kl": pair, "reverse_kl": pair},
        "budget": {
            **{"student_flops": 1.0, "tokens": 10, "teacher_tokens": 10, "generated_tokens": 0},
            **{"seconds": 0.5, "peak_memory_bytes": 1000},
        },
        "digests": {
            **{"initial_weights": f"weights-{config.seed}", "data_order": f"order-{config.seed}"},
            "evaluation_items": "items",
        },
    }
