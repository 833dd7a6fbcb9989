"""A skill's verdict on a text, checked: a number between 0 and 1, or why there is none."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from kd.metrics.table import of_skill
from kd.sandbox import AT_LIMIT, NoVerdict, SandboxError, concurrently
from kd.types import Record, Skill


class Scored(NamedTuple):
    """The score of one text. `error`: why the verifier returned none, which counts as the worst; None where it did."""

    score: float
    error: str | None = None


def scored(skill: Skill, record: Record, text: str, *, reference: Callable[[], str | None]) -> Scored:
    """What the skill's verifier gives for `text`; the metric's worst value with the reason where it returns nothing.

    reference: looks up a right answer to the record. A verifier that fails on this one, too, is at fault itself.

    Raises:
        ValueError: names the record: the score is outside of the metric's range, or the verifier fails on the reference
            (or raises on the text, and there is no reference).
        SandboxError: no verdict can be had from a sandbox.
    """
    outcome = _outcome(skill, record, text)
    if isinstance(outcome, float):
        return Scored(outcome)
    right = reference()
    if right is None and at_limit(outcome):
        return Scored(of_skill(skill.metric).worst, outcome)
    if right is None:
        raise ValueError(f"{_where(skill, record)} fails on a response, and there is no reference to try: {outcome}")
    if isinstance(again := _outcome(skill, record, right), str):
        raise ValueError(f"{_where(skill, record)} fails on the reference: {again}; mend its `score`")
    return Scored(of_skill(skill.metric).worst, outcome)


def scored_all(
    skill: Skill, pairs: Sequence[tuple[Record, str]], *, reference: Callable[[Record], str | None]
) -> list[Scored]:
    """`scored` of each record and text, in their order: a text that a record has several times is scored once, and
    verifiers that use the sandbox score several at a time.

    reference: looks up a right answer to a record.

    Raises:
        ValueError, SandboxError: as `scored`.
    """
    keys = [(id(record), text) for record, text in pairs]
    distinct = dict(zip(keys, pairs, strict=True))
    found = concurrently(
        lambda pair: scored(skill, *pair, reference=partial(reference, pair[0])), list(distinct.values())
    )
    scores = dict(zip(distinct, found, strict=True))
    return [scores[key] for key in keys]


def at_limit(error: str | None) -> bool:
    """Whether an answer has this reason for no score since the sandbox reached a limit: nothing is known about it."""
    return error is not None and error.partition(":")[0] in AT_LIMIT


def _where(skill: Skill, record: Record) -> str:
    return f"record {record.id}: the verifier of skill {skill.name}"


def _outcome(skill: Skill, record: Record, text: str) -> float | str:
    """The score, or why there is none."""
    try:
        score = float(skill.score(record, text))
    except SandboxError:
        raise
    except NoVerdict as error:
        return f"{error.status}: {error}"
    except (Exception, SystemExit) as error:
        return f"raised: {type(error).__name__}: {error}"
    metric = of_skill(skill.metric)
    if not (math.isfinite(score) and metric.low <= score <= metric.high):
        raise ValueError(
            f"{_where(skill, record)} gives {score}; a score lies between {metric.low:g} and {metric.high:g}"
        )
    return score
