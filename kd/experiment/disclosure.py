"""Facts that stand beside a run's scores: where data and models come from, what they cost to run, what leaks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kd.data.bad_rows import FIRST
from kd.data.contamination import N, overlapping
from kd.evaluation.efficiency import efficiency
from kd.evaluation.evaluate import Session
from kd.experiment.export import licences
from kd.models.language_model import LanguageModel
from kd.types import Record, Skill


def disclosed(config: Mapping[str, Any], parts: Any, sessions: Mapping[str, Session]) -> dict[str, Any]:
    """The content of `origins`, `efficiency`, `contamination` and `skipped_rows` of results.json (docs/run_folder.md).

    config: as plain containers. sessions: the evaluation of each skill, by name; the run's own is among them.
    """
    own = parts.skill.name
    found = licences(config, own, parts.skill.licence)
    origins = {role: {"which": name.replace("`", ""), "licence": of or "unknown"} for role, (name, of) in found.items()}
    models = {"student": parts.module.student, "teacher": parts.teacher}
    timed = sessions[own].prompts or sessions[own].items
    costs = {
        role: asdict(efficiency(model, timed)) for role, model in models.items() if isinstance(model, LanguageModel)
    }
    splits = {"validation": parts.data.validation, "test": _items(sessions[own])}
    others = {f"{name} test": _items(session) for name, session in sessions.items() if name != own}
    return {
        "origins": origins,
        "efficiency": costs,
        "contamination": contamination(parts.data.train, {**splits, **others}),
        "skipped_rows": _skipped([parts.skill, *(session.skill for session in sessions.values())]),
    }


def _skipped(skills: Sequence[Skill]) -> dict[str, Any]:
    """By skill, how many rows of its files were skipped, and the first of them."""
    every = {one.name: one.skipped_rows for skill in skills for one in (skill, *skill.parts.values())}
    return {name: {"count": len(rows), "first": list(rows[:FIRST])} for name, rows in every.items() if rows}


def _items(session: Session) -> list[Record]:
    """The test records that are scored or answered, each once."""
    return list({record.id: record for record in (*session.items, *session.prompts)}.values())


def contamination(train: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """For each split in use the number of its items and the ids of those that overlap with `train`."""
    found = {
        name: {"items": len(records), "overlapping": overlapping(train, records)} for name, records in splits.items()
    }
    return {"words": N, "splits": {name: counts for name, counts in found.items() if counts["items"]}}
