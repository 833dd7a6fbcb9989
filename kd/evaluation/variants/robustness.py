"""A system on the changed items of a skill beside the same items as they are (`kd.evaluation.variants`)."""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kd.evaluation.evaluate import Session
from kd.evaluation.items import requires_answers
from kd.evaluation.measured import Measured
from kd.evaluation.variants import Variant
from kd.intervals import NAN, Score, mean, resampled
from kd.metrics.corpus import CorpusMetric
from kd.metrics.table import Metric
from kd.models.language_model import LanguageModel
from kd.skills.answer_metrics import FunctionMetric
from kd.teachers.ensemble import Ensemble
from kd.types import Record

NOTHING = Score(NAN, 0, NAN, NAN)


class Pair(NamedTuple):
    """One metric of one system on the same items, as they are and changed.

    drop: how much worse the changed ones are, clean - varied where higher is better, else varied - clean; its interval
        is of the differences of the pairs. flipped: the share of items whose value changes, of those that have one.
        attack_success: of the items with the best value as they are, the share without it once changed (ASR of Wang et
        al. 2023, arXiv 2302.12095).
    """

    clean: Score
    varied: Score
    drop: Score
    flipped: Score
    attack_success: Score


@dataclass(frozen=True)
class Varied:
    """One system on one variant: pairs by metric, and what was measured of the changed items."""

    pairs: Mapping[str, Pair]
    measured: Measured


class Robustness:
    """The items of a session under each variant of its evaluation.

    An item that a variant leaves as it is, or makes too long, is in neither number of the pair; each is counted apart.
    """

    def __init__(self, session: Session):
        self.session = session
        changed = {one.name: _changed(session, one) for one in session.evaluation.variants}
        self.changed = {name: _items(one) for name, one in changed.items()}
        self.sessions = {name: _fitting(one) for name, one in changed.items()}

    def counts(self, name: str) -> dict[str, int]:
        """The number of items that are measured under a variant, of those that it leaves as they are (`left_out`), and
        of those that it makes too long for an answer (`too_long`)."""
        given, changed, kept = _items(self.session), self.changed[name], _items(self.sessions[name])
        return {"items": len(kept), "left_out": len(given - changed), "too_long": len(changed - kept)}

    def measure(self, system: LanguageModel | Ensemble, clean: Measured, *, identity: str) -> dict[str, Varied]:
        """The system under each variant; answers and likelihoods are cached as those of all records are.

        clean: the system's own measurement by the session.
        """
        return {name: self._measure(one, system, clean, identity) for name, one in self.sessions.items()}

    def _measure(self, session: Session, system: LanguageModel | Ensemble, clean: Measured, identity: str) -> Varied:
        found = session.measure(system, identity=identity)
        metrics = {one.metric.name: one.metric for one in session.metrics} | {session.metric.name: session.metric}
        functions = [one for one in session.metrics if isinstance(one, FunctionMetric)]
        totals = {one.metric.name: one.total for one in functions if isinstance(one.function, CorpusMetric)}
        pairs = {
            name: paired(metrics[name], *_aligned(clean.items, found.items, name), totals.get(name), **session.interval)
            for name in found.scores
        }
        return Varied(pairs, found)


def _changed(session: Session, variant: Variant) -> Session:
    """The session on the items that the variant changes, without references."""

    def changed(records: Sequence[Record]) -> list[Record]:
        found = (variant(record, session.evaluation.seed, session.skill) for record in records)
        return [record for record in found if record is not None]

    other = copy.copy(session)
    other.items, other.teacher, other.teacher_name = [], None, None
    other.prompts, other.choices = changed(session.prompts), changed(session.choices)
    return other


def _fitting(session: Session) -> Session:
    """The session without the prompts that leave no room for an answer."""
    other = copy.copy(session)
    other.prompts = [record for record in session.prompts if session.encoder.takes(record)]
    return other


def _items(session: Session) -> set[str]:
    """The ids of the items on which a metric of the session is measured."""
    used = [session.prompts] if session.generates else []
    used += [session.choices] if not all(map(requires_answers, session.metrics)) else []
    return {record.id for records in used for record in records}


def _aligned(clean: pd.DataFrame, varied: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one metric for the items of both tables, in the order of the second."""
    first, second = (table[table["metric"] == metric].set_index("id") for table in (clean, varied))
    both = [name for name in second.index if name in first.index]
    return first.loc[both], second.loc[both]


def paired(
    metric: Metric,
    clean: pd.DataFrame,
    varied: pd.DataFrame,
    total: Callable[[np.ndarray], float] | None = None,
    **interval: Any,
) -> Pair:
    """The pair of two tables of `kd.evaluation.items` whose rows are of the same items, in the same order.

    total: of a metric of the whole corpus, which combines the rows in `statistics`.
    interval: confidence and resamples, as in `kd.intervals`.
    """
    groups = clean["group"].tolist()
    before, after = (table["value"].to_numpy(dtype=float) for table in (clean, varied))
    sign = 1.0 if metric.higher_is_better else -1.0
    known = ~np.isnan(before) & ~np.isnan(after)
    flipped = _share(before != after, known, groups, **interval)
    if total is None:
        width = metric.bounds[1] - metric.bounds[0]
        own, other = (mean(values, groups, bounds=metric.bounds, **interval) for values in (before, after))
        drop = mean(sign * (before - after), groups, bounds=(-width, width), **interval)
        if flipped.value == 0 and math.isfinite(width):  # no more of the items can differ than their interval holds
            drop = drop._replace(low=-width * flipped.high, high=width * flipped.high)
    else:
        own, other, drop = _of_corpus(total, sign, clean, varied, groups, interval)
    right = before == metric.best if math.isfinite(metric.best) else np.zeros(len(before), dtype=bool)
    return Pair(own, other, drop, flipped, _share(after != metric.best, right, groups, **interval))


def _share(outcomes: np.ndarray, chosen: np.ndarray, groups: Sequence[str], **interval: Any) -> Score:
    """The share of true outcomes among the chosen items."""
    own = [group for group, one in zip(groups, chosen, strict=True) if one]
    return mean(outcomes[chosen].astype(float), own, **interval) if own else NOTHING


def _of_corpus(
    total: Callable[[np.ndarray], float],
    sign: float,
    clean: pd.DataFrame,
    varied: pd.DataFrame,
    groups: Sequence[str],
    interval: Mapping[str, Any],
) -> tuple[Score, Score, Score]:
    """The metric of all answers to either, and its drop: rows of an item, side by side, are drawn together."""
    several = [[json.loads(one) for one in table["statistics"]] for table in (clean, varied)]
    owners = [group for group, rows in zip(groups, several[0], strict=True) for _ in rows]
    before, after = (np.array([row for rows in side for row in rows]) for side in several)
    width = before.shape[1] if before.ndim > 1 else 0
    both = np.concatenate([before, after], axis=1) if width else before

    def drop(rows: np.ndarray) -> float:
        return sign * (total(rows[:, :width]) - total(rows[:, width:]))

    found = (resampled(before, total, owners, **interval), resampled(after, total, owners, **interval))
    own, other, difference = (one._replace(n=len(clean)) for one in (*found, resampled(both, drop, owners, **interval)))
    return own, other, difference
