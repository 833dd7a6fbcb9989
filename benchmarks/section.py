"""One section of `benchmarks.gpu` in this process: python -m benchmarks.section NAME FOLDER DEVICE SECONDS [--tiny]

The section `vllm` runs in an environment that has vLLM, and imports nothing that is not there.
"""

import ctypes
import signal
import sys
from pathlib import Path

from benchmarks.scene import Scene, Section


def rows_of(name: str) -> Section:
    """The section of that name."""
    if name == "vllm":
        from benchmarks import vllm_engine

        return vllm_engine.rows
    from benchmarks.gpu import SECTIONS

    return SECTIONS[name]


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that happens (Linux)."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    name, folder, device, seconds = sys.argv[1:5]
    Scene(Path(folder), device, "--tiny" in sys.argv).until(float(seconds)).measure(name, rows_of(name))
