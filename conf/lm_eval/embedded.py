"""Data of embedded skills for tasks of lm-evaluation-harness."""

from typing import Any

from datasets import Dataset

from kd.components.choices import content
from kd.components.instantiation import instantiate


def spell_backward(**_: Any) -> dict[str, Dataset]:
    """The first 100 test problems of conf/skill/spell_backward.yaml."""
    skill = instantiate({**content("skill", "spell_backward"), "train": 0, "validation": 0, "test": 100})
    rows = [{"question": one.prompt[-1]["content"], "answer": one.responses[0].text} for one in skill.load("test")]
    return {"test": Dataset.from_list(rows)}
