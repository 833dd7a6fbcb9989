"""One row for each item and metric of a system, and the scores that rows make together.

Columns: metric; id, of the record; group, whose items an interval draws together; value, of the item alone, NaN where
it has none; statistics, in json, of what the score is made where it is no mean of the values: numerator and denominator
of a ratio, or the rows of a `kd.metrics.corpus.CorpusMetric`; undecided, how many answers had no verdict, as the
sandbox reached a limit, and count as the worst.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from kd.intervals import NAN, Score, mean, resampled
from kd.metrics.corpus import CorpusMetric
from kd.sandbox import NoVerdict, concurrently
from kd.skills.answer_metrics import GENERATED, LIKELIHOOD, Evidence, FunctionMetric
from kd.types import AnswerMetric, Record

COLUMNS = ("metric", "id", "group", "value", "statistics", "undecided")
ANSWERED = ("text", "score", "tokens", "truncated")  # columns of answers that metrics are computed from

Likelihoods = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by record: logprobs, prior logprobs


def items(
    metric: str,
    ids: Sequence[str],
    groups: Sequence[str],
    values: Sequence[float] | pd.Series | np.ndarray,
    statistics: Sequence[Any] | None = None,
    undecided: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The rows of one metric."""
    texts = [None] * len(ids) if statistics is None else [json.dumps(one) for one in statistics]
    lost = [0] * len(ids) if undecided is None else list(undecided)
    return pd.DataFrame(dict(zip(COLUMNS, (metric, list(ids), list(groups), list(values), texts, lost), strict=True)))


def ratio_items(
    metric: str, ids: Sequence[str], groups: Sequence[str], above: pd.Series, below: pd.Series
) -> pd.DataFrame:
    """The rows of a ratio of sums."""
    pairs = list(zip(above.astype(float).tolist(), below.astype(float).tolist(), strict=True))
    return items(metric, ids, groups, [a / b if b else float("nan") for a, b in pairs], pairs)


def requires_answers(metric: AnswerMetric) -> bool:
    """Return whether it is computed from generated text."""
    return not isinstance(metric, FunctionMetric) or bool(metric.requires & GENERATED)


def generates(headline: AnswerMetric | None, metrics: Sequence[AnswerMetric]) -> bool:
    """Return whether a skill's prompts are answered: a metric is computed from text, as is a score of its own.

    headline: the metric that stands for the skill's own score; None: it has one of its own.
    """
    return headline is None or any(map(requires_answers, metrics))


def requires_several(metric: AnswerMetric) -> bool:
    """Return whether it is computed from all answers to a prompt."""
    return isinstance(metric, FunctionMetric) and bool(metric.requires & {"texts", "scores"})


def requires_likelihood(metric: AnswerMetric, *, prior: bool = False) -> bool:
    """Return whether it is computed from the likelihood of choices; `prior`: after an empty prompt, too."""
    wanted = frozenset({"prior_logprobs"}) if prior else LIKELIHOOD
    return isinstance(metric, FunctionMetric) and bool(metric.requires & wanted)


def evidence(records: Sequence[Record], answers: pd.DataFrame | None, likelihoods: Likelihoods) -> list[Evidence]:
    """What was measured of each record: its answers, in their order, and the likelihoods of its choices."""
    by_id: dict[str, list[tuple[Any, ...]]] = {}
    columns = [] if answers is None else [answers[name].tolist() for name in ("id", *ANSWERED)]
    for name, *row in zip(*columns, strict=True):
        by_id.setdefault(name, []).append(tuple(row))
    return [_evidence(record, by_id.get(record.id, ()), *likelihoods.get(record.id, ((), ()))) for record in records]


def _evidence(
    record: Record, rows: Sequence[tuple[Any, ...]], logprobs: Sequence[float], prior: Sequence[float]
) -> Evidence:
    texts, scores, lengths, cut = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Evidence(record, texts, scores, lengths, cut, logprobs, prior)


def measured(
    metric: AnswerMetric, found: Sequence[Evidence], groups: Sequence[str], **interval: Any
) -> tuple[Score, pd.DataFrame]:
    """The metric's score over the items, and their rows.

    interval: confidence and resamples, as in `kd.intervals`.
    """
    ids = [one.record.id for one in found]
    if isinstance(metric, FunctionMetric) and isinstance(metric.function, CorpusMetric):
        several = concurrently(metric.rows, found)
        rows = metric.function.coded(np.array([row for one in several for row in one]))
        owners = [group for group, one in zip(groups, several, strict=True) for _ in one]
        score = resampled(rows, metric.total, owners, **interval)._replace(n=len(found))
        values = [metric.total(np.array(one)) if metric.function.of_one else NAN for one in several]
        return score, items(metric.metric.name, ids, groups, values, several)
    of_item = metric.value if isinstance(metric, FunctionMetric) else partial(_scores, metric)
    pairs = concurrently(of_item, found)
    values = [value for value, _ in pairs]
    score = mean(values, groups, bounds=metric.metric.bounds, **interval)
    return score, items(metric.metric.name, ids, groups, values, undecided=[lost for _, lost in pairs])


def _scores(metric: AnswerMetric, evidence: Evidence) -> tuple[float, int]:
    """The same as `FunctionMetric.value` of another metric of answers."""
    found: list[float | None] = []
    for text in evidence.texts:
        try:
            found.append(metric.score(evidence.record, text))
        except NoVerdict:
            found.append(None)
    return float(np.mean([metric.metric.worst if one is None else one for one in found])), found.count(None)
