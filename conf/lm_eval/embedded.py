"""Data of embedded skills for tasks of lm-evaluation-harness."""

from typing import Any

from datasets import Dataset

from kd.components.choices import content
from kd.components.instantiation import instantiate
from kd.types import Record


def spell_backward(**_: Any) -> dict[str, Dataset]:
    """The first 100 test problems of conf/skill/spell_backward.yaml."""
    found = _test("spell_backward", train=0, validation=0, test=100)
    rows = [{"question": _question(one), "answer": one.responses[0].text} for one in found]
    return {"test": Dataset.from_list(rows)}


def openbookqa(**_: Any) -> dict[str, Dataset]:
    """The 100 test questions of conf/skill/openbookqa.yaml."""
    rows = [
        {"question": _question(one), "choices": list(one.meta["choices"]), "answer": one.meta["answer_index"]}
        for one in _test("openbookqa")
    ]
    return {"test": Dataset.from_list(rows)}


def _test(name: str, **sizes: int) -> list[Record]:
    return list(instantiate({**content("skill", name), **sizes}).load("test"))


def _question(record: Record) -> str:
    return record.prompt[-1]["content"]
