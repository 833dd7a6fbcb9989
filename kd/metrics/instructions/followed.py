"""The share of an item's verifiable instructions that an answer follows, as IFEval and IFBench count it."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from kd.metrics.instructions import ifbench, ifeval

VERSION = 2  # sentences, tokens and oddities are those of the official code

CHECKS = ifeval.CHECKS | ifbench.CHECKS


def instructions_followed(
    text: str, meta: Mapping[str, Any], *, level: Literal["prompt", "instruction"] = "prompt", loose: bool = False
) -> float:
    """Whether an answer follows the instructions `meta["instruction_id_list"]` with the settings `meta["kwargs"]`.

    An empty answer follows none. The mean over items of the "prompt" level is the papers' prompt-level accuracy; that
    of the "instruction" level weighs every item the same, where the papers weigh every instruction the same.

    Args:
        level: "prompt": 1 if all are followed, else 0. "instruction": the share of them.
        loose: an instruction counts as followed if it is after the first line, the last line, both, or asterisks are
        removed.

    Raises:
        ValueError: there is no check for an instruction.
    """
    variants = list(_variants(text)) if loose else [text]
    results = [
        any(variant.strip() and _check(name)(variant, settings) for variant in variants)
        for name, settings in zip(meta["instruction_id_list"], meta["kwargs"], strict=True)
    ]
    return float(all(results)) if level == "prompt" else sum(results) / len(results)


def _check(name: str) -> ifeval.Check:
    if name not in CHECKS:
        raise ValueError(f"instruction {name} has no check here; leave out the rows that have it")
    return CHECKS[name]


def _variants(text: str) -> Iterator[str]:
    """The eight texts of IFEval's loose accuracy."""
    lines = text.split("\n")
    shorter = ("\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1]))
    for kept in (text, *shorter):
        yield from (kept, kept.replace("*", ""))
