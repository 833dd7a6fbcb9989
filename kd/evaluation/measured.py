"""The result of an evaluation of one system."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from kd.intervals import NAN, Score
from kd.metrics.table import ON_TEACHER
from kd.models.language_model import LanguageModel
from kd.teachers.ensemble import Ensemble
from kd.types import Record


@dataclass(frozen=True)
class Measured:
    """One system on one skill.

    scores: by metric: bits_per_byte; top1, forward_kl and reverse_kl where there was a teacher to compare with; the
        skill's own metric under its own name. A metric that was not measured is absent.
    references, answers: the tables from which the scores come, one row per record (None: not measured).
    samples: id, prompt, response, reference, score, tokens, truncated, verifier_error, sample of each answer.
    items: one row for each item and metric (`kd.evaluation.items`).
    seconds: time of the computation, also where another run did it and this one read it from the cache.
    positions: by the responses that were read (`references`, and of `evaluation.excess_error` the system's `own` and
        the `teacher`'s), the bins of `kd.evaluation.positions.by_position`.
    """

    scores: Mapping[str, Score]
    references: pd.DataFrame | None
    answers: pd.DataFrame | None
    samples: Sequence[Mapping[str, Any]]
    seconds: float
    items: pd.DataFrame = field(default_factory=pd.DataFrame)
    positions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Reference tokens that were predicted."""
        return 0 if self.references is None else int(self.references["tokens"].sum())

    @property
    def generated_tokens(self) -> int:
        """Tokens that were generated."""
        return 0 if self.answers is None else int(self.answers["tokens"].sum())

    @property
    def verifier_errors(self) -> int:
        """Answers for which the verifier returned no score; they count as wrong."""
        return 0 if self.answers is None else int(self.answers["error"].notna().sum())

    @property
    def undecided(self) -> dict[str, int]:
        """By metric, the answers on which a sandbox reached a limit, where there are any: they count as the worst."""
        if self.items.empty:
            return {}
        counts = self.items.groupby("metric", sort=False)["undecided"].sum()
        return {str(name): int(count) for name, count in counts.items() if count}


def named(system: LanguageModel | Ensemble, identity: str) -> str:
    """The identity with the precision: the same weights in another precision are another system."""
    return f"{identity} {next(system.parameters()).dtype}"


def by_definition(teacher: Measured) -> Measured:
    """The teacher's agreement with itself without an interval: it is the same on all problems."""
    exact = {name: teacher.scores[name]._replace(low=NAN, high=NAN) for name in ON_TEACHER if name in teacher.scores}
    return replace(teacher, scores={**teacher.scores, **exact})


def gap_closed(
    floor: float | None, teacher: float | None, student: float | None, *, higher_is_better: bool = False
) -> float | None:
    """(floor - student) / (floor - teacher): 0 at the floor, 1 at the teacher, above 1 beyond it.

    With `higher_is_better` the same with both differences turned round. None where a number is missing or NaN, and
    where the teacher is no better than the floor, so that there is no gap.
    """
    if floor is None or teacher is None or student is None:
        return None
    sign = -1.0 if higher_is_better else 1.0
    gap, closed = sign * (floor - teacher), sign * (floor - student)
    if not gap > 0 or math.isnan(closed):
        return None
    return closed / gap + 0.0  # no "-0 %"


def samples(answers: pd.DataFrame, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows for `samples.jsonl`, one for each answer; `sample` counts those to one prompt."""
    by_id = {record.id: record for record in records}
    counts = answers.groupby("id").cumcount()
    return [
        _sample(by_id[row["id"]], row) | {"sample": int(i)}
        for i, row in zip(counts, answers.to_dict("records"), strict=True)
    ]


def _sample(record: Record, row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "id": record.id,
        "prompt": "\n\n".join(message["content"] for message in record.prompt),
        "response": row["text"],
        "reference": record.responses[0].text if record.responses else None,
        "score": float(row["score"]),
        "tokens": int(row["tokens"]),
        "truncated": bool(row["truncated"]),
        "verifier_error": row["error"],
    }
