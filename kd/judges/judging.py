"""The judges of a run on its systems' answers: win rates and grades, and how far each judge can be trusted.

Every verdict is one row of items.csv for each item, system and judge, so that any two systems can be paired later; the
replies are rows of verdicts.jsonl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kd.evaluation.items import items
from kd.generators.account import Meter, metered
from kd.intervals import NAN, Score, mean, resampled
from kd.judges.judge import Graded, Judge, Opponent, Pair, Pairwise
from kd.judges.length_control import length_controlled_score
from kd.judges.verdicts import VALUE, Outcome, Reply, Verdict
from kd.metrics.labels import cohen_kappa
from kd.metrics.table import Metric
from kd.progress import part
from kd.skills.answer_metrics import Evidence
from kd.teachers.interface import Teacher
from kd.types import Record

Texts = Mapping[str, Mapping[str, str]]  # the answers of each system, by record
Key = tuple[str, str, Opponent]  # skill, system and opponent of a pair


@dataclass(frozen=True)
class Answered:
    """The answers of all systems to one skill's prompts.

    groups: of each record, whose items an interval draws together.
    systems: by opponent, the system that it is.
    """

    skill: str
    records: Sequence[Record]
    groups: Sequence[str]
    texts: Texts
    systems: Mapping[Opponent, str]

    def of_opponent(self, opponent: Opponent) -> Mapping[str, str]:
        """The answers that those of the systems are compared with."""
        if opponent == "references":
            return {record.id: Evidence(record).references[0] for record in self.records}
        return self.texts[self.systems[opponent]]


class Compared(NamedTuple):
    """The verdict on two answers, the group of their record, and by how many characters the first one is longer."""

    outcome: Outcome | None
    group: str
    longer: int


@dataclass
class Found:
    """What one judge found.

    scores: by skill, metric and system. rows: of items.csv, with skill and system. replies: rows of verdicts.jsonl.
    verdicts, lengths, groups: of all pairs; lengths are those of the first answer less the second's, in characters.
    missing: 1 for each item without a verdict, 0 for the others. outcomes: of each item, by record.
    unread: the records of the items that do not fit the judge, of pairs. left_out: their number, of all items.
    labels: of each labelled record that fits the judge, the label and the outcome.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, Score]]] = field(default_factory=dict)
    rows: list[pd.DataFrame] = field(default_factory=list)
    replies: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    outcomes: dict[Key, dict[str, Compared]] = field(default_factory=dict)
    unread: dict[Key, list[str]] = field(default_factory=dict)
    labels: dict[str, tuple[Outcome, Outcome | None]] = field(default_factory=dict)
    left_out: int = 0

    def add(
        self,
        skill: str,
        system: str,
        metric: Metric,
        table: Sequence[tuple[str, str, float]],
        statistics: Sequence[Any] | None = None,
        **interval: Any,
    ) -> None:
        """The mean over the items with a verdict, and a row for each item of `table`: id, group, value."""
        known = [(value, group) for _, group, value in table if not np.isnan(value)]
        score = mean([v for v, _ in known], [g for _, g in known], bounds=metric.bounds, **interval)
        ids, groups, values = ([row[i] for row in table] for i in range(3))
        rows = items(metric.name, ids, groups, values, statistics)  # type: ignore[arg-type]
        self._keep(skill, system, metric, score, rows)

    def add_rates(
        self,
        name: str,
        key: Key,
        found: Mapping[str, Compared],
        statistics: Sequence[Any] | None = None,
        **interval: Any,
    ) -> None:
        """The win rates of the judge `name`: ties as half a win; of decided pairs alone, wins / (wins + losses); and
        the first as it were between answers of equal length.

        statistics: of the first, the verdict in each order. Those of the second are numerator and denominator.
        """
        skill, system, opponent = key
        self.outcomes[key] = dict(found)
        table = [(one, pair.group, VALUE[pair.outcome]) for one, pair in found.items()]
        decided = [(one, group, NAN if value == VALUE["tie"] else value) for one, group, value in table]
        over = f"over\nthe {opponent}\n({name})"
        half = Metric(f"win_rate-{name}-{opponent}", f"win rate {over}")
        self.add(skill, system, half, table, statistics, **interval)
        shares = [None if np.isnan(v) else [0.0, 0.0] if v == VALUE["tie"] else [v, 1.0] for *_, v in table]
        self.add(skill, system, Metric(f"decided-{name}-{opponent}", f"of decided {over}"), decided, shares, **interval)
        controlled = Metric(f"lc_win_rate-{name}-{opponent}", f"length-controlled\nwin rate {over}")
        self._add_controlled(skill, system, controlled, found, **interval)
        self.count(skill, table)

    def _add_controlled(
        self, skill: str, system: str, metric: Metric, found: Mapping[str, Compared], **interval: Any
    ) -> None:
        """The length-controlled win rate, a number of all items; `statistics` of each are its verdict and length."""
        known = {one: [[VALUE[pair.outcome], float(pair.longer)]] for one, pair in found.items() if pair.outcome}
        groups = [found[one].group for one in known]
        pairs = np.array([row for (row,) in known.values()]).reshape(-1, 2)
        score = length_controlled_score(pairs, groups, **interval)
        every = [pair.group for pair in found.values()]
        rows = items(metric.name, [*found], every, [NAN] * len(found), [known.get(one) for one in found])
        self._keep(skill, system, metric, score, rows)

    def _keep(self, skill: str, system: str, metric: Metric, score: Score, rows: pd.DataFrame) -> None:
        self.metrics[metric.name] = metric
        self.scores.setdefault(skill, {}).setdefault(metric.name, {})[system] = score
        self.rows.append(rows.assign(skill=skill, system=system))

    def count(self, skill: str, table: Sequence[tuple[str, str, float]]) -> None:
        """Count the items of which there is no verdict."""
        self.missing += [float(np.isnan(value)) for *_, value in table]
        self.groups += [f"{skill} {group}" for _, group, _ in table]


class Judging:
    """One judge of a run.

    Args:
        name: its key in the config.
        judge, teacher: its prompt, and the model.
        labelled: records with a preferred and another response, in this order.
        interval: confidence and resamples, as in `kd.intervals`.
    """

    def __init__(self, name: str, judge: Judge, teacher: Teacher, labelled: Sequence[Record], **interval: Any):
        self.name, self.judge, self.teacher, self.labelled, self.interval = name, judge, teacher, labelled, interval
        self.found, self.meter = Found(), Meter()

    def measure(self, answered: Answered) -> None:
        """Judge the answers of all systems to one skill's prompts."""
        with metered(self.meter):
            self._measure(answered)

    def _measure(self, answered: Answered) -> None:
        if isinstance(self.judge, Graded):
            for system in answered.texts:
                with part(f"{self.name}, {system}"):
                    self._grade(self.judge, answered, system)
        elif isinstance(self.judge, Pairwise):
            for opponent in self.judge.opponents:
                for system in answered.texts:
                    if system != answered.systems.get(opponent):
                        with part(f"{self.name}, {system} and {opponent}"):
                            self._compare(self.judge, answered, system, opponent)

    def facts(self) -> dict[str, Any]:
        """The judge's entry in results.json (`kd.runs.results.Judge`)."""
        found, spread = self.found, self.interval
        with metered() as of_labels:
            agreed = self._agreement()
        spent = self.meter.spent.plus(of_labels.spent)
        placed = [*zip(found.verdicts, found.groups, strict=False)]  # of a judge that grades there are no verdicts
        longer = [
            ((verdict.outcome == "first") == (length > 0), group)
            for (verdict, group), length in zip(placed, found.lengths, strict=True)
            if length and verdict.outcome in ("first", "second")
        ]
        return {
            "model": self.teacher.identity(),
            "verdict": self.judge.verdict,
            "version": self.judge.version,
            "metrics": list(found.metrics),
            "unparsable": share([*zip(found.missing, found.groups, strict=True)], **spread),
            "position_bias": share([(one.flipped, g) for one, g in placed if one.flipped is not None], **spread),
            "shown_first": share([(first, g) for one, g in placed for first in one.shown_first], **spread),
            "longer": share(longer, **spread),
            "between": None,
            "left_out": found.left_out,
            **agreed,
            "labelled_left_out": len(self.labelled) - len(found.labels),
            "cost": {
                "tokens": spent.teacher_tokens + spent.generated_tokens,
                "seconds": spent.seconds,
                **({"money": spent.money} if spent.money else {}),
            },
        }

    # ---- one system --------------------------------------------------------------------------------------------------

    def _compare(self, judge: Pairwise, answered: Answered, system: str, opponent: Opponent) -> None:
        own, other = answered.texts[system], answered.of_opponent(opponent)
        chosen = self._chosen(answered, own, other)
        pairs = [Pair(record, own[record.id], other[record.id]) for record, _ in chosen]
        judged = judge.judged(self.teacher, pairs)
        read = [i for i, (verdict, _) in enumerate(judged) if verdict.read]
        unread = [pair.record.id for pair, (verdict, _) in zip(pairs, judged, strict=True) if not verdict.read]
        self.found.unread[answered.skill, system, opponent] = unread
        self.found.left_out += len(unread)
        verdicts = [judged[i][0] for i in read]
        self.found.verdicts += verdicts
        longer = [len(pair.first) - len(pair.second) for pair in pairs]
        self.found.lengths += [longer[i] for i in read]
        orders = [list(verdict.orders) for verdict in verdicts]
        outcomes = {chosen[i][0].id: Compared(judged[i][0].outcome, chosen[i][1], longer[i]) for i in read}
        self.found.add_rates(self.name, (answered.skill, system, opponent), outcomes, orders, **self.interval)
        place = {"judge": self.name, "skill": answered.skill, "system": system, "against": opponent}
        for i in read:
            verdict, replies = judged[i]
            for order, turned, reply in zip(verdict.orders, verdict.turned, replies, strict=True):
                shown = {"id": pairs[i].record.id, "shown_first": "second" if turned else "first", "verdict": order}
                self.found.replies.append({**place, **shown, **_reply(reply)})

    def _grade(self, judge: Graded, answered: Answered, system: str) -> None:
        own = answered.texts[system]
        chosen = self._chosen(answered, own)
        graded = judge.graded(self.teacher, [(record, own[record.id]) for record, _ in chosen])
        read = [i for i, (_, reply) in enumerate(graded) if not reply.left_out]
        self.found.left_out += len(graded) - len(read)
        values = [NAN if (grade := graded[i][0]) is None else float(grade) for i in read]
        table = [(chosen[i][0].id, chosen[i][1], value) for i, value in zip(read, values, strict=True)]
        ends: dict[str, Any] = {"low": float(judge.low), "high": float(judge.high), "unit": "grade"}
        metric = Metric(f"grade-{self.name}", f"grade\n({self.name})", **ends)
        self.found.add(answered.skill, system, metric, table, **self.interval)
        self.found.count(answered.skill, table)
        place = {"judge": self.name, "skill": answered.skill, "system": system}
        for (name, _, value), i in zip(table, read, strict=True):
            verdict = None if np.isnan(value) else value
            self.found.replies.append({**place, "id": name, "verdict": verdict, **_reply(graded[i][1])})

    def _chosen(self, answered: Answered, *texts: Mapping[str, str]) -> list[tuple[Record, str]]:
        """The first `items` records, and their groups, to which there are all answers."""
        pairs = list(zip(answered.records, answered.groups, strict=True))[: self.judge.items]
        return [(record, group) for record, group in pairs if all(record.id in one for one in texts)]

    # ---- trust -------------------------------------------------------------------------------------------------------

    def _agreement(self) -> dict[str, Any]:
        """The judge's verdicts on labelled pairs beside the labels.

        The preferred answer is the first of two pairs and the second of the next two, so that labels have two classes
        alike, of which each is shown first as often as second where a judge reads pairs in one order alone. Pairs that
        do not fit the judge are left out.
        """
        labels: list[Outcome] = ["second" if i // 2 % 2 else "first" for i in range(len(self.labelled))]
        pairs = [_pair(record, label) for record, label in zip(self.labelled, labels, strict=True)]
        verdicts = self.judge.compare(self.teacher, pairs)
        self.found.labels = {
            record.id: (label, verdict.outcome)
            for record, label, verdict in zip(self.labelled, labels, verdicts, strict=True)
            if verdict.read
        }
        return agreement(self.judge.labelled, self.found.labels, **self.interval)


def agreement(
    labelled: str | None, found: Mapping[str, tuple[Outcome, Outcome | None]], **interval: Any
) -> dict[str, Any]:
    """The share of labels that the verdicts are, and Cohen's kappa of the two, with intervals over records.

    Ties and missing verdicts are classes of their own, and no agreement.

    found: by record, its label and the verdict.
    """
    if labelled is None:
        return {"labelled": None, "agreement": None, "kappa": None}
    rows = np.array([(label, verdict or "none") for label, verdict in found.values()]).reshape(-1, 2)
    kappa = resampled(rows, lambda drawn: cohen_kappa(drawn[:, 0], drawn[:, 1]), list(found), **interval)
    agreed = mean(rows[:, 0] == rows[:, 1], list(found), **interval)
    return {"labelled": labelled, "agreement": agreed._asdict(), "kappa": kappa._asdict()}


def share(outcomes: Sequence[tuple[float | bool | None, str]], **interval: Any) -> dict[str, Any] | None:
    """The share of true ones, each with its group, and its interval; None of no outcomes."""
    if not outcomes:
        return None
    return mean([float(bool(one)) for one, _ in outcomes], [g for _, g in outcomes], **interval)._asdict()


def labelled_pairs(skill: str, records: Sequence[Record]) -> list[Record]:
    """The records with two answers or more, the preferred one first, as a chosen and a rejected one.

    Raises ValueError where there is none.
    """
    if found := [record for record in records if len(record.responses) > 1]:
        return found
    raise ValueError(
        f"skill {skill} has no record with a preferred and another response, so a judge's agreement cannot be measured "
        "on it; name one with chosen and rejected answers (true_summaries, preference_demo), or null"
    )


def _pair(record: Record, label: Outcome) -> Pair:
    preferred, other = (response.text for response in record.responses[:: max(len(record.responses) - 1, 1)])
    return Pair(record, preferred, other) if label == "first" else Pair(record, other, preferred)


def _reply(reply: Reply) -> dict[str, Any]:
    if reply.logprobs is not None:
        return {"logprobs": [*reply.logprobs]}
    return {"reply": reply.text, "finished": bool(reply.finished)}
