"""Checks of the requirements of terms, reward and teacher on the skill's records, before any weight is loaded.

The skill is read only where something depends on its records: how many responses each has, whether these bear scores,
whether each names its teacher.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from inspect import signature
from typing import Any

from kd.components.choices import choices
from kd.components.signatures import located
from kd.composition.groups import group_check, passes_given, ways
from kd.composition.interfaces import made_by
from kd.composition.lacks import Lack
from kd.composition.terms import signals_of
from kd.skills.records import made
from kd.teachers.ensemble import member_of
from kd.training.terms import STREAMS
from kd.types import Record, Split

Node = Mapping[str, Any]
Check = Callable[[Record], None]


def record_checks(config: Node) -> Iterator[Callable[[], None]]:
    """The checks one by one: each raises ValueError that names the first record which lacks what is required."""
    if passes_given("rollout", config["rollout"]):
        for names, check in _group_checks(config["objective"]):
            yield partial(_check_all, config, partial(_check_responses, names, check), ("train",))
    reward = config["reward"]
    if reward.get("_target_") is not None and made_by("reward", reward).of_records:
        yield partial(_check_all, config, _check_scores, ("train",))
    if config["teacher"].get("combine") == "routed":
        members, key = tuple(config["teacher"]["members"]), config["teacher"].get("key", "teacher")
        yield partial(_check_all, config, partial(_check_routed, members, key), ("train", "validation", "test"))


def _group_checks(objective: Node) -> Iterator[tuple[str, Callable[[int], None]]]:
    """The terms' checks of the number of responses, each once, with the names of the terms that require it."""
    names: dict[Any, list[str]] = {}
    for name, term in objective.items():
        callee = located(f"objective.{name}.loss", term["loss"]["_target_"])
        check = group_check(term["loss"], signals_of(callee))
        if check is not None and term.get("stream", STREAMS[0]) == STREAMS[0]:
            names.setdefault((check.func, tuple(check.keywords.items())), []).append(name)
    for (function, settings), terms in names.items():
        yield " and ".join(terms), partial(function, **dict(settings))


def _check_all(config: Node, check: Check, splits: Sequence[Split]) -> None:
    for split in splits:
        for record in _records(json.dumps(config["skill"], sort_keys=True), split):
            changed = _augmented(record, config["augmentation"]["stages"])
            if changed is None:  # by a stage without an `outline`
                return
            check(changed)


@lru_cache(maxsize=8)
def _records(skill: str, split: Split) -> Sequence[Record]:
    return made(skill).load(split)


def _augmented(record: Record, stages: Mapping[str, Node]) -> Record | None:
    """The record after the stages, without new texts; None where a stage's `outline` is not known."""
    for name, stage in stages.items():
        found = made_by(f"augmentation.stages.{name}", stage)
        defaults = {name: p.default for name, p in signature(found).parameters.items()}
        if (changed := found.outline(record, {**defaults, **stage})) is None:
            return None
        record = changed
    return record


def _check_responses(names: str, check: Callable[[int], None], record: Record) -> None:
    try:
        check(len(record.responses))
    except ValueError as error:
        fact = str(error).partition("; ")[0]  # its remedy does not fit every run
        came = f"record {record.id} came with {len(record.responses)}"
        raise Lack(f"{names}, of the records' own responses ({came}): {fact}", ways()) from None


def _check_routed(members: Sequence[str], key: str, record: Record) -> None:
    try:
        member_of(record, members, key)
    except ValueError as error:
        raise Lack(str(error).partition("; ")[0], {"teacher": choices("teacher")}) from None


def _check_scores(record: Record) -> None:
    for response in record.responses:
        if response.score is None:
            raise Lack(
                f"reward RecordScores reads a score of each response, but record {record.id} has one by the "
                f"{response.source} without",
                {"reward": choices("reward")},
            )
