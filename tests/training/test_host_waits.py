"""Between two logged steps the host never waits for its GPU: it reads no value from there, and no size that is unknown.

Run: python -m pytest tests/training/test_host_waits.py -m long
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.host_waits import CASES, STEPS, WAITS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="a GPU without values needs g++"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.host_waits", str(tmp_path_factory.mktemp("guard"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_steps_wait_for_nothing(found, case):
    assert found[case]["wait"] is None, found[case]["wait"]
    assert found[case]["steps"] == STEPS
    assert found[case]["uploads"] == 0


def test_a_wait_would_be_found(found):
    assert found["fkl"]["found"] == sorted(WAITS)


def test_half_precision_reads_packed_rows_by_their_lengths(found):
    """What the kernel computes is tried on a GPU alone (`benchmarks.agreement`)."""
    assert found["half"]["read"] == ["torch.bfloat16"]
    assert found["fkl"]["read"] == []
