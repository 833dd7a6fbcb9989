"""Facts that stand beside a run's scores: where data and models come from, what they cost to run, what leaks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kd.data.contamination import N, overlapping
from kd.evaluation.efficiency import efficiency
from kd.experiment.export import licences
from kd.models.language_model import LanguageModel
from kd.types import Record


def disclosed(
    config: Mapping[str, Any], parts: Any, items: Sequence[Record], prompts: Sequence[Record]
) -> dict[str, Any]:
    """The content of `origins`, `efficiency` and `contamination` of results.json (docs/run_folder.md).

    config: as plain containers. items, prompts: the test records whose references are scored, and those that are
    answered.
    """
    found = licences(config, parts.skill.name, parts.skill.licence)
    origins = {role: {"which": name.replace("`", ""), "licence": of or "unknown"} for role, (name, of) in found.items()}
    models = {"student": parts.module.student, "teacher": parts.teacher}
    costs = {
        role: asdict(efficiency(model, prompts)) for role, model in models.items() if isinstance(model, LanguageModel)
    }
    test = list({record.id: record for record in (*items, *prompts)}.values())
    splits = {"validation": parts.data.validation, "test": test}
    return {"origins": origins, "efficiency": costs, "contamination": contamination(parts.data.train, splits)}


def contamination(train: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """For each split in use the number of its items and the ids of those that overlap with `train`."""
    found = {
        name: {"items": len(records), "overlapping": overlapping(train, records)} for name, records in splits.items()
    }
    return {"words": N, "splits": {name: counts for name, counts in found.items() if counts["items"]}}
