"""The metrics that a skill names: files of `conf/metric`, or functions of one's own, applied to records and answers.

A metric is a function; its positional parameters name what it is computed from, as an objective's name its signals,
and what follows the `*` is set in yaml. The names are the fields and properties of `Evidence`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np

from kd.components.choices import choices, content, file_of
from kd.components.signatures import check_call, located, suggestion
from kd.metrics.corpus import CorpusMetric
from kd.metrics.table import Metric, of_skill
from kd.sandbox import NoVerdict
from kd.types import AnswerMetric, Record

GROUP = "metric"
FACTS = frozenset(field.name for field in fields(Metric)) - {"of"}
OF_TEXT = frozenset(
    {"text", "references", "answers", "choices", "answer_index", "relevance", "source", "meta", "record"}
)
GENERATED = frozenset({"text", "texts", "tokens", "truncated", "score", "scores"})
LIKELIHOOD = frozenset({"logprobs", "prior_logprobs"})


@dataclass(frozen=True)
class Evidence:
    """What a metric may be computed from: a record, the answers that a system generated to it, and its likelihoods.

    texts: the answers, one for each sample. scores: the skill's own score of each. lengths: tokens of each, end token
        included. cut: whether each was truncated by a bound.
    logprobs: of each choice after the prompt, in nats. prior_logprobs: of each choice after an empty prompt.
    """

    record: Record
    texts: Sequence[str] = ()
    scores: Sequence[float] = ()
    lengths: Sequence[int] = ()
    cut: Sequence[bool] = ()
    logprobs: Sequence[float] = ()
    prior_logprobs: Sequence[float] = ()

    def of_sample(self, i: int) -> "Evidence":
        """The same with answer i alone."""
        lists = {name: cast(Sequence[Any], getattr(self, name))[i : i + 1] for name in ("scores", "lengths", "cut")}
        return Evidence(self.record, self.texts[i : i + 1], **lists)

    @property
    def meta(self) -> Mapping[str, Any]:
        """The record's `meta`."""
        return self.record.meta

    @property
    def text(self) -> str:
        """The answer."""
        return self.texts[0]

    @property
    def score(self) -> float:
        """The skill's own score of the answer."""
        return self.scores[0]

    @property
    def tokens(self) -> int:
        """Tokens of the answer, end token included."""
        return self.lengths[0]

    @property
    def truncated(self) -> bool:
        """Whether the answer was truncated by a bound."""
        return self.cut[0]

    @property
    def references(self) -> list[str]:
        """The acceptable answers: `meta["references"]`, else the first response's text."""
        found = self.meta.get("references")
        if found is None:
            found = [response.text for response in self.record.responses[:1]]
        return [found] if isinstance(found, str) else [*self._some("references", found)]

    @property
    def answers(self) -> list[str]:
        """The short right answers: `meta["answer"]`, one or a list, else the references."""
        found = self.meta.get("answer")
        if found is None:
            return self.references
        return [str(one) for one in (found if isinstance(found, list | tuple) else [found])]

    @property
    def choices(self) -> list[str]:
        """The choices: `meta["choices"]`, else the texts of several responses, the first of which is preferred."""
        found = self.meta.get("choices")
        if found is None and len(self.record.responses) > 1:
            found = [response.text for response in self.record.responses]
        return [*self._some("choices", found)]

    @property
    def answer_index(self) -> int:
        """The place of the right choice: `meta["answer_index"]`; of several responses that are the choices, 0."""
        found = self.meta.get("answer_index")
        if found is None and self.meta.get("choices") is None and len(self.record.responses) > 1:
            return 0
        if not isinstance(found, int) or not 0 <= found < len(self.choices):
            raise ValueError(f"{self._where} has answer_index={found!r}; give the place of one of its choices, from 0")
        return found

    @property
    def relevance(self) -> list[float]:
        """The gain of each choice: `meta["relevance"]`, else 1 of the right one and 0 of the others."""
        found = self.meta.get("relevance")
        if found is None:
            return [float(i == self.answer_index) for i in range(len(self.choices))]
        if len(found) != len(self.choices):
            raise ValueError(f"{self._where} has {len(found)} numbers of relevance for {len(self.choices)} choices")
        return [float(one) for one in found]

    @property
    def source(self) -> str:
        """The text that an answer rewrites: `meta["source"]`, else the last message of the prompt."""
        return str(self.meta.get("source") or self.record.prompt[-1]["content"])

    @property
    def _where(self) -> str:
        return f"record {self.record.id} of {self.record.skill}"

    def _some(self, name: str, found: Sequence[Any] | None) -> list[str]:
        if not found:
            raise ValueError(
                f"{self._where} has no {name}, which a metric requires; give `meta` a list `{name}`, or leave the "
                "metric out of skill.metrics"
            )
        return [str(one) for one in found]


KNOWN = frozenset(name for name in vars(Evidence) if not name.startswith("_")) | {f.name for f in fields(Evidence)}


@dataclass(frozen=True)
class FunctionMetric(AnswerMetric):
    """A metric that a function computes of named inputs (`Evidence`): the mean over answers, or a `CorpusMetric`."""

    metric: Metric
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    requires: frozenset[str]
    node: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_text(self) -> bool:
        """Whether the text of an answer is all that it requires beside the record, so that it has a `score`."""
        return self.requires <= OF_TEXT and not isinstance(self.function, CorpusMetric)

    def score(self, record: Record, text: str) -> float:
        """The value of one answer.

        Raises:
            ValueError: it is no metric of a single text, or the record lacks what it requires.
        """
        if not self.of_text:
            listed = ", ".join(sorted(self.requires))
            raise ValueError(
                f"metric {self.metric.name} is computed from {listed}, of which a text alone gives no score; name a "
                "metric of answers, such as exact_match, first in skill.metrics"
            )
        return float(self._row(Evidence(record, (text,)))[0])

    def rows(self, evidence: Evidence) -> list[tuple[Any, ...]]:
        """The numbers of one item: its value (`value`); or the rows of a corpus metric, one for each answer."""
        if not isinstance(self.function, CorpusMetric):
            return [(self.value(evidence)[0],)]
        if not self.requires & GENERATED:
            return [self._row(evidence)]
        return [self._row(evidence.of_sample(i)) for i in range(len(evidence.texts))]

    def value(self, evidence: Evidence) -> tuple[float, int]:
        """The value of one item, the mean over the answers to it, and the number of answers without a verdict.

        An answer on which a sandboxed function reached a limit has none, and counts as the worst.
        """
        if self.requires & {"texts", "scores"} or not self.requires & GENERATED:
            return self._row(evidence)[0], 0
        keys = evidence.texts if self.of_text else range(len(evidence.texts))  # equal texts have equal values
        decided = {key: self._decided(evidence.of_sample(i)) for key, i in _places(keys).items()}
        found = [decided[key] for key in keys]
        return float(np.mean([self.metric.worst if one is None else one for one in found])), found.count(None)

    def _decided(self, evidence: Evidence) -> float | None:
        try:
            return self._row(evidence)[0]
        except NoVerdict:
            return None

    def _row(self, evidence: Evidence) -> tuple[Any, ...]:
        found = self.function(**{name: getattr(evidence, name) for name in self.requires}, **self.arguments)
        if isinstance(self.function, CorpusMetric):
            return tuple(found)
        value, (low, high) = float(found), self.metric.bounds
        inside = min(max(value, low), high)
        if not math.isclose(value, inside, rel_tol=1e-9, abs_tol=1e-9):
            raise ValueError(
                f"record {evidence.record.id}: metric {self.metric.name} gives {value}, which is outside of "
                f"{low:g} to {high:g}; mend the function or give its file the range"
            )
        return (inside,)  # sacrebleu's 100 is 100.00000000000003

    def total(self, rows: np.ndarray) -> float:
        """The metric of rows `[n k]`: of a corpus metric its `total`, else the mean."""
        return self.function.total(rows) if isinstance(self.function, CorpusMetric) else float(rows[:, 0].mean())


def _places(keys: Sequence[Any]) -> dict[Any, int]:
    """The first place of each key."""
    return {key: len(keys) - 1 - i for i, key in enumerate(reversed(keys))}


def answer_metrics(names: Sequence[str | Mapping[str, Any]]) -> tuple[FunctionMetric, ...]:
    """The metrics of a skill's list `metrics`, in its order.

    names: files of `conf/metric`, or of `metric/` in a folder of `--config-dir`; or mappings with a `_target_`, what
        such a file holds.

    Raises:
        ValueError: there is no such metric, a name occurs twice, a function's inputs are unknown, or a config may not
            name it (`kd.components.allowed`).
    """
    found = tuple(_metric(name) for name in names)
    listed = [one.metric.name for one in found]
    if twice := next((name for name in listed if listed.count(name) > 1), None):
        raise ValueError(f"skill.metrics names {twice} twice; give one of them another `name`")
    return found


def _metric(entry: str | Mapping[str, Any]) -> FunctionMetric:
    path, node = _node(entry)
    whole = dict(node)
    target = located(path, node.pop("_target_", None))
    facts: dict[str, Any] = {key: node.pop(key) for key in FACTS & node.keys()}
    name = str(facts.pop("name", None) or (entry if isinstance(entry, str) else target.__name__))
    ends: dict[str, Any] = {key: float(facts.pop(key)) for key in ("low", "high") if key in facts}
    metric = of_skill(Metric(name, **ends, **facts))
    if isinstance(target, type):
        check_call(path, node, target)
        made: Any = target(**node)
        return FunctionMetric(metric, made, {}, _inputs(path, made), whole)
    check_call(path, {**node, "_partial_": True}, target)
    return FunctionMetric(metric, target, node, _inputs(path, target), whole)


def _node(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, str):
        return "skill.metrics", {str(key): value for key, value in entry.items() if key != "_partial_"}
    if not file_of(GROUP, entry).exists():
        raise ValueError(f"skill.metrics: conf/{GROUP} has no {entry}.yaml; {suggestion(entry, choices(GROUP))}")
    return f"{GROUP}={entry}", dict(content(GROUP, entry))


def _inputs(path: str, function: Callable[..., Any]) -> frozenset[str]:
    """The names of the positional parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]
    for name in names:
        if name not in KNOWN - {"of_sample", "lengths", "cut"}:
            known = ", ".join(sorted(KNOWN - {"of_sample", "lengths", "cut"}))
            raise ValueError(
                f"{path}: its function is computed from {name}, which is no input of a metric; known: {known}"
            )
    return frozenset(names)
