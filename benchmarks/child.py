"""Every measurement in a process of its own: what one leaves behind, no other one finds."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUIET = {
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


def ask(module: str, question: Mapping[str, Any], threads: int, timeout: float = 7200) -> dict[str, Any]:
    """What `python -m module --child QUESTION` answers, or {"failed": reason}."""
    command = [sys.executable, "-W", "ignore", "-m", module, "--child", json.dumps(question)]
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {timeout:.0f} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"failed": said[-1][:300] if said else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def answer(value: Mapping[str, Any]) -> None:
    """The child's last line."""
    print(json.dumps(value), flush=True)


def resident() -> int:
    """Bytes in memory now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes that were in memory since the process began, or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> bool:
    """Let the peak begin again at what is resident now. False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; run on Linux")
