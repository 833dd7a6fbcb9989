"""What components compute on small float64 cases: not whether it is right, only whether it is what it was.

A component whose numbers changed needs another `VERSION`, or runs of before are shown as its own. After `VERSION` was
raised, `python -m tests.pins` writes `tests/pins.json`.
"""

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kd.intervals import mean, ratio
from kd.versions import versions
from tests import runs
from tests.objectives.terms import OBJECTIVES, evaluate, read, world

FILE = Path(__file__).with_suffix(".json")
DIGITS = 7  # significant; platforms differ after the twelfth


def summary(numbers: Iterable[Tensor]) -> list[float]:
    """Two sums over all numbers, with weights under which no two of them may change places."""
    flat = torch.cat([x.detach().double().flatten() for x in numbers if x is not None] or [torch.zeros(1).double()])
    flat = flat.nan_to_num(nan=-7.0, posinf=-8.0, neginf=-9.0)
    place = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return [
        float(f"{float(total):.{DIGITS}g}") for total in ((flat * place.sin()).sum(), (flat**2 * place.cos()).sum())
    ]


def of_objective(path: Path) -> list[float]:
    """Values and gradients of its terms."""
    results = [evaluate(term, world(batch=4, length=3)) for term in read(path)]
    return summary(x for values, gradients in results for x in (values, *(gradients[k] for k in sorted(gradients))))


def of_training(*words: str) -> list[float]:
    """The weights after four steps with a schedule and clipping."""
    words = (*runs.EXACT, "optim.steps=4", "optim.schedule=cosine", "optim.clip=0.5", *words)
    with TemporaryDirectory() as folder:
        parts = runs.train(runs.config(*words), Path(folder))
    return summary(parts.module.student.state_dict().values())


def of_intervals() -> list[float]:
    """A mean and a ratio over groups, with their intervals."""
    groups = [str(i // 3) for i in range(24)]
    shares = pd.Series([float(i % 5 == 0) for i in range(24)])
    settings: dict[str, Any] = {"confidence": 0.95, "resamples": 500}
    scores = [mean(shares, groups, **settings), ratio(shares * 3 + 1, shares + 2, groups, **settings)]
    return summary([torch.tensor([s.value, s.low, s.high], dtype=torch.float64) for s in scores])


STAGES: dict[str, tuple[Callable[[], list[float]], list[str]]] = {
    "training": (partial(of_training, "objective=[fkl,sft]"), ["kd.experiment.build"]),
    "training, sequence means": (partial(of_training, "objective=fkl", "reduction=sequence"), ["kd.experiment.build"]),
    "writing": (
        partial(of_training, "objective=rkl", "rollout=on_policy"),
        ["kd.experiment.build", "kd.rollouts.on_policy"],
    ),
    "intervals": (of_intervals, ["kd.intervals"]),
}


def targets(path: Path) -> list[str]:
    """The functions and classes that an objective's file names."""
    content = OmegaConf.load(path)
    return [str(node.loss._target_) for name, node in content.items() if "loss" in (node or {})]


def code(*names: str) -> str:
    """The versions that these components depend on, in one text."""
    return json.dumps(versions(*names))


def pins() -> dict[str, dict[str, Any]]:
    """Of each component: what it depends on, what it computes, and which module to look into."""
    found = {}
    for path in sorted(OBJECTIVES.glob("*.yaml")):
        names = targets(path)
        found[f"objective/{path.stem}"] = {"code": code(*names), "numbers": of_objective(path), "module": names}
    for name, (compute, modules) in STAGES.items():
        found[name] = {"code": code(*modules), "numbers": compute(), "module": modules}
    return found


def main() -> None:
    """Write the pins anew."""
    os.environ.setdefault("KD_ALLOW", "tests")
    FILE.write_text(json.dumps(pins(), indent=1) + "\n")


if __name__ == "__main__":
    main()
