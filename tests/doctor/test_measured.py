"""Estimates of memory against real runs on a CPU.

Run: python -m pytest -m long tests/doctor/test_measured.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each tensor is mapped by itself and unmapped when it is freed, so that resident memory is what is in use.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}
# What oneDNN compiles for a product is not kept for the next one of that shape: a rollout has many shapes.
COMPILED = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}


@pytest.mark.long
@pytest.mark.parametrize(("runs", "more"), [(("off-policy", "recomputed"), {}), (("on-policy",), COMPILED)])
def test_estimates_are_within_15_percent_of_real_runs(
    tmp_path: Path, runs: tuple[str, ...], more: dict[str, str]
) -> None:
    """In a process of its own; two steps each, with evaluation and export."""
    command = [sys.executable, "-m", "tests.doctor.measured", str(tmp_path), *runs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **EXACT, **more}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.findall(r"^(.+): estimated (\d+) measured (\d+)$", done.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in found] == list(runs)
    for name, estimated, measured in found:
        assert int(estimated) > 150e6
        assert 0.85 < int(measured) / int(estimated) < 1.15, (name, estimated, measured)
