"""`python tests/run_worker.py JOBS`: the fits of a json list, one after another, in a process of their own.

A job is what `tests.runs.job` makes. With `trainer=ddp_cpu` Lightning starts this script again as the
second rank. Every rank leaves `final.<rank>.pt` in each path; a job that is told to stop ends the process with its
exit code.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from kd.models.identity import weights_digest
from kd.seeding import derive
from kd.training import build, fit
from tests import runs


def work(path: Path, overrides: list[str], nodes: dict[str, Any], synchronised: bool) -> None:
    """One fit, and what it left on this rank."""
    parts = build(cfg := runs.config(*overrides, **nodes))
    initial = weights_digest(parts.module.student)
    if not synchronised:
        parts.module.synchronised = lambda last: parts.module.trainer.strategy.block_backward_sync()
    fit(cfg, parts, runs.started(path))
    final = {
        "weights": dict(parts.module.student.state_dict()),
        "random": torch.get_rng_state(),
        "initial": initial,
        "derived": derive(1, "a component", 2),
    }
    torch.save(final, path / f"final.{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[1]):
        work(Path(job.pop("path")), **job)
