"""What a figure depends on beside the code: versions, threads, the machine's own limit, and who else uses it."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "lightning", "trl", "liger-kernel", "accelerate", "peft", "triton", "vllm")


def versions() -> dict[str, str]:
    """Of python and of the packages that are compared, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def described() -> dict[str, Any]:
    """The machine and the process, without names."""
    return {
        **versions(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }


def available_bytes() -> int:
    """Memory that a new process could use now."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable; run on Linux")


def busy_seconds() -> float:
    """Processor time of the whole machine since boot, all users."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Clock:
    """Wall and processor seconds of a block, and the share of the machine that others used meanwhile."""

    def __enter__(self) -> "Clock":
        self.start = time.perf_counter(), time.process_time(), busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu, busy = (
            now - then
            for now, then in zip((time.perf_counter(), time.process_time(), busy_seconds()), self.start, strict=True)
        )
        self.wall, self.cpu = wall, cpu
        self.foreign = max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1))

    def row(self) -> dict[str, float]:
        """For the raw rows."""
        return {"wall": self.wall, "cpu": self.cpu, "foreign": self.foreign}


def gemm_limit(dtype: torch.dtype, repeats: int = 5) -> dict[str, float]:
    """GFLOP per wall second and per processor second of the best matrix product that this torch offers in `dtype`."""
    x, w = torch.randn(1024, 2048).to(dtype), torch.randn(4096, 2048).to(dtype)
    best = {"wall": 0.0, "cpu": 0.0}
    for product in _products(dtype):
        product(x, w)
        for _ in range(repeats):
            with Clock() as clock:
                for _ in range(4):
                    product(x, w)
            work = 4 * 2 * 1024 * 2048 * 4096 / 1e9
            best = {"wall": max(best["wall"], work / clock.wall), "cpu": max(best["cpu"], work / clock.cpu)}
    return best


def _products(dtype: torch.dtype) -> Iterable[Callable]:
    yield torch.nn.functional.linear
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        yield lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def finish(device: str) -> None:
    """Wait until the device has done all work that was queued on it, so that a clock shows its time."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, repeats: int = 5, warm: int = 1) -> list[float]:
    """Wall seconds of `repeats` calls, after `warm` that are not counted."""
    times = list[float]()
    for _ in range(warm + repeats):
        finish(device)
        started = time.perf_counter()
        run()
        finish(device)
        times.append(time.perf_counter() - started)
    return times[warm:]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _processor() -> str:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    print(described())
    for dtype in (torch.float32, torch.bfloat16):
        print(dtype, {kind: f"{rate:.0f} GFLOP/s" for kind, rate in gemm_limit(dtype).items()})
