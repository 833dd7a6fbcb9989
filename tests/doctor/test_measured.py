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
RUNS = ("off-policy", "recomputed", "on-policy")
# Each tensor is mapped by itself and unmapped when it is freed, so that resident memory is what is in use.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.long
def test_estimates_are_within_15_percent_of_real_runs(tmp_path: Path) -> None:
    """In a process of its own; two steps each, with evaluation and export."""
    command = [sys.executable, "-m", "tests.doctor.measured", str(tmp_path), *RUNS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **EXACT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.findall(r"^(.+): estimated (\d+) measured (\d+)$", done.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in found] == list(RUNS)
    for name, estimated, measured in found:
        assert int(estimated) > 150e6
        assert 0.85 < int(measured) / int(estimated) < 1.15, (name, estimated, measured)
