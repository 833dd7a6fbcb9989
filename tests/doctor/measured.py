"""Prints the estimated and the measured peak of memory of several runs, one after the other, in bytes.

Run: python -m tests.doctor.measured FOLDER NAME...
"""

import json
import sys
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from kd.composition.overrides import started
from kd.doctor.gpus import gpu
from kd.doctor.measure import ResidentPeak, resident
from kd.doctor.needs import needs
from kd.doctor.workload import Assumed
from kd.experiment.loading import _shared_teacher
from kd.experiment.plan import Plan, plain
from kd.experiment.run import work
from kd.kernels.allocation import give_freed_memory_back

WORDS = ("river", "stone", "cloud", "green", "tower", "wind")
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 384, "intermediate_size": 1024}
LAYERS = {"student": 4, "teacher": 6}
BASE = [
    *("teacher=tiny", "student=tiny", "teacher.prepare=null", "trainer=cpu", "compare=null", "skill.train=32"),
    *("skill.validation=2", "skill.test=2", "optim.steps=2", "optim.window=8", "data.max_length=256"),
    *("evaluation.items=2", "evaluation.answers=2", "evaluation.max_new_tokens=4", "checkpoint.records=2"),
]
WARM = ["skill=spell_backward", "rollout=on_policy", "rollout.max_new_tokens=4", "run.force=true"]
GENERATED = ("rollout=on_policy", "rollout.max_new_tokens=120", "rollout.batch_size=32", "optim.window=32")
RUNS = {  # tokens that a model reads of each record, bytes of prompt and response with the template's; and overrides
    "off-policy": (243, ("objective=fkl",)),
    "recomputed": (243, ("objective=fkl", "+student.model.gradient_checkpointing=true")),
    "on-policy": (203, ("objective=rkl", "data.max_tokens=256", *GENERATED)),  # generation takes most
}


def sizes() -> list[str]:
    """Overrides of both networks' sizes."""
    return [
        f"{role}.model.architecture.{key}={value}"
        for role, layers in LAYERS.items()
        for key, value in {**SHAPE, "num_hidden_layers": layers}.items()
    ]


def text(number: int, characters: int) -> str:
    """A text of that length."""
    words = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(characters))
    return words[: characters - 1] + "."


def written(folder: Path) -> str:
    """Records that all have the same length, of each split; the value of `skill.path`."""
    for split, count in (("train", 64), ("validation", 4), ("test", 4)):
        rows = [{"prompt": text(i, 80), "response": text(i + 1, 160)} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "{" + ", ".join(f"{split}: {folder}/{split}.jsonl" for split in ("train", "validation", "test")) + "}"


def ran(cfg: DictConfig) -> None:
    """Train, evaluate and export, as `python run.py` does."""
    plan = Plan.of(cfg)
    plan.folder.path.mkdir(parents=True, exist_ok=True)
    work(plan)


def main(folder: Path, names: list[str]) -> None:
    """The runs, after a tiny one that imports everything."""
    data = ["skill=dataset", f"skill.path={written(folder)}"]
    with started():
        ran(compose("config", overrides=[*BASE, *WARM, f"run.root={folder}/warm"]))
        for name in names:
            length, overrides = RUNS[name]
            cfg = compose("config", overrides=[*BASE, *sizes(), *data, *overrides, f"run.root={folder}/{name}"])
            found = needs(plain(cfg), Assumed(gpu("h100-80"), length=length))
            _shared_teacher.cache_clear()  # the run before has the same
            give_freed_memory_back()
            before = resident()
            with ResidentPeak() as grown:
                ran(cfg)
            for phase, parts in found.memory.items():
                print(phase, {part: f"{size / 1e6:.0f} MB" for part, size in parts.items() if size})
            print(f"{name}: estimated {found.peak} measured {grown.size - before}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
